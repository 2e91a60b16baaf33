"""The host's time, measured with few rounds."""

from __future__ import annotations

import pytest
import torch

import scripts.bench.host as host
from scripts.bench.__main__ import make_setup
from scripts.bench.syncs import micro_batch_reads
from scripts.bench.workloads import build


def test_rows_and_their_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TOKENS", 2)
    monkeypatch.setitem(host.SHAPE, "num_hidden_layers", 2)
    threads = torch.get_num_threads()
    rows = host.compare_host(make_setup("mini", device="cpu", dtype="float32", random=False, batch=16), rounds=1)
    assert [(row.bar, row.at_least) for row in rows] == [
        (0.92, True),
        (0.88, True),
        (1.03, False),
        (1.35, False),
        (1.0, False),
    ]
    assert all(row.ours > 0 and row.theirs > 0 for row in rows[:4])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("cached", [True, False])
def test_a_micro_batch_adds_no_read_of_the_device(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """The host queues the next micro-batch while a GPU computes."""
    monkeypatch.setitem(host.SHAPE, "num_hidden_layers", 2)
    setup = make_setup("mini", device="cpu", dtype="float32", random=False, batch=16)
    setup = host.tiny_setup(setup, host.MODULES["query and value"])
    model = build(setup, stream="interwoven").train()
    assert micro_batch_reads(model, host.stepper(model, setup, cached=cached)) == 0
