"""The training time of a sweep: IMSM with a bank that all members share, and plain PEFT."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint_manager import CheckpointManager
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.hidden_state_store import contents_of, get_or_compute, open_cache
from imsm.training.optimizer import build_optimizer, build_schedule
from imsm.training.trainer import BatchPlan, train
from scripts.bench.comparison import Comparison
from scripts.bench.steps import train_step
from scripts.bench.timing import now
from scripts.bench.workloads import METHODS, Setup, build, random_batch

if TYPE_CHECKING:
    from imsm.models.siamese.hidden_state_cache import HiddenStateCache
    from imsm.models.siamese.streams import Stream

RANKS, EPOCHS, STEPS = (4, 8), 2, 60


def compare_sweep(setup: Setup) -> list[Comparison]:
    """Two methods by two gate ranks, 60 steps each, filling the bank included; by turns."""
    ours, theirs = sweep_seconds(setup)
    return [
        Comparison(
            name="training four runs, miniature, the bank's filling included: IMSM / our PEFT",
            ours=ours[-1],
            theirs=theirs[-1],
            unit="s",
            bar=1.15,
        )
    ]


def sweep_seconds(setup: Setup, *, members: int = 4) -> tuple[list[float], list[float]]:
    """Seconds after each member of a sweep, of IMSM and of PEFT."""
    items = random_batch(setup, vocabulary=_vocabulary(setup), rows=setup.batch * STEPS // EPOCHS)
    seconds: dict[Stream, list[float]] = {"interwoven": [0.0], "tuned": [0.0]}
    train_step(build(setup, stream="tuned"), setup)()  # the process's first step is nobody's
    with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
        choices = list(product(METHODS, RANKS))
        for number in range(members):
            method, rank = choices[number % len(choices)]
            turns: list[Stream] = ["tuned", "interwoven"]
            for stream in turns if number % 2 else reversed(turns):
                model = build(replace(setup, gate_rank=rank), stream=stream, method=method)
                place = Path(folder) / f"{stream}{number}"
                start = now(setup.device)
                bank = _bank(model, items) if stream == "interwoven" else None
                _train(model, items, setup, bank=bank, folder=place)
                seconds[stream].append(seconds[stream][-1] + now(setup.device) - start)
    return seconds["interwoven"][1:], seconds["tuned"][1:]


def _vocabulary(setup: Setup) -> int:
    return int(build(setup, stream="tuned").config.vocab_size)


def _bank(model: SiameseForCausalLM, items: Sequence[TokenizedExample]) -> HiddenStateCache:
    """As a run gets it: from the disk, filled by whoever comes first, checked."""
    contents = contents_of(
        items, backbone="bench", dtype=str(model.dtype), attention=None, pooling="mean", device=model.device
    )
    return open_cache(get_or_compute(contents, model, items, pad_id=0, label="bench"), items)


def _train(
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    setup: Setup,
    *,
    bank: HiddenStateCache | None,
    folder: Path,
) -> None:
    """The real loop, checkpoint at its end included."""
    optimizer = build_optimizer(model, name="adamw", learning_rate=3e-4, gate_learning_rate=None, weight_decay=0.0)
    batching = BatchPlan(epochs=EPOCHS, batch_size=setup.batch, micro_batch_size=setup.batch, seed=0)
    schedule = build_schedule(optimizer, name="linear", warmup_ratio=0.1, steps=batching.steps(len(items)))
    engine = SingleDeviceEngine(
        model, optimizer=optimizer, schedule=schedule, clip_norm=1.0, device=torch.device(setup.device)
    )
    train(
        model,
        items,
        engine=engine,
        hooks=None,
        batching=batching,
        keeper=CheckpointManager(folder=folder, identity={}, engine=engine, hooks=None, minutes=60),
        pad_id=0,
        log=lambda step, measured: None,
        bank=lambda: bank,
    )


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Banks go to ``folder``."""
    before = os.environ.get("IMSM_CACHE")
    os.environ["IMSM_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["IMSM_CACHE"]
        else:
            os.environ["IMSM_CACHE"] = before
