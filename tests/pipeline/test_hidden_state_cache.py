"""Whether a training has a memory bank: asked for, within the limit, and alike in all processes."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from imsm.config.identity import run_identity
from imsm.config.schema import RunConfig
from imsm.distributed.context import DistributedContext
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import hidden_state_cache as stage
from imsm.pipeline.hidden_state_cache import open_hidden_state_cache, precompute_cache
from imsm.pipeline.run import run_experiment
from imsm.training.hidden_state_store import banks_folder
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.models.siamese.tiny import tiny_siamese
from tests.training.test_trainer import items


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))


def found(
    *overrides: str, dist_context: DistributedContext | None = None, model: SiameseForCausalLM | None = None
) -> HiddenStateCache | None:
    given: RunConfig = config(*overrides)
    return open_hidden_state_cache(
        given, model or tiny_siamese(), items(), pad_id=0, dist_context=dist_context or DistributedContext()
    )


def banks() -> int:
    return len(list(banks_folder().glob("*/bank")))


def test_auto_and_disk_share_one_and_ram_keeps_none() -> None:
    held = found("hidden_state_cache=ram")
    assert held is not None and banks() == 0
    for where in ("auto", "disk"):
        other = found(f"hidden_state_cache={where}")
        assert other is not None and torch.equal(other.memories, held.memories)
    assert banks() == 1


@pytest.mark.parametrize(
    "overrides", [("hidden_state_cache=off",), ("hidden_state_cache=disk", "method=peft"), ("method=original",)]
)
def test_who_does_not_read_it_fills_none(overrides: tuple[str, ...]) -> None:
    assert found(*overrides) is None and not banks_folder().exists()


def test_peft_that_is_held_to_the_original_reads_it() -> None:
    assert found("method=peft", "trainer.kl_beta=0.1") is not None


def test_it_is_no_part_of_a_runs_identity() -> None:
    for override in ("hidden_state_cache=off", "hidden_state_cache_gb=1.0"):
        assert run_identity(config(override)) == run_identity(config())


TIGHT = "hidden_state_cache_gb=1.0e-06"


def test_too_large_is_off_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(TIGHT) is None
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("hidden_state_cache=auto: off, it takes ")
    assert "hidden_state_cache_gb=1e-06 allows" in told[0]
    for where in ("disk", "ram"):
        with pytest.raises(UserError, match=rf"hidden_state_cache={where}: it takes .*more than"):
            found(TIGHT, f"hidden_state_cache={where}")
    with pytest.raises(UserError, match="hidden_state_cache=disk: it takes"):
        precompute_cache(config(TIGHT, "hidden_state_cache=disk"), tiny_siamese(), items(), pad_id=0)
    assert banks() == 0


def test_one_that_is_there_is_used_whatever_the_limit() -> None:
    assert found() is not None and found(TIGHT) is not None


def test_others_count_towards_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert found("hidden_state_cache_gb=1.0e-05") is not None
    assert found("hidden_state_cache_gb=1.0e-05", "gate.pooling=max") is None
    assert "of other banks" in capsys.readouterr().err


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil._ntuple_diskusage(10**6, 10**6, 10)
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: usage)
    assert found() is None
    assert "10 B free (IMSM_CACHE" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    banks_folder().parent.mkdir(parents=True)
    banks_folder().write_text("in the way")
    assert found() is None
    assert "could not be filled" in capsys.readouterr().err
    with pytest.raises(UserError, match="could not be filled"):
        found("hidden_state_cache=disk")


@pytest.mark.parametrize("readable", [True, False], ids=["all can read", "one cannot"])
def test_processes_decide_alike(
    readable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    opened = stage.open_cache
    model = tiny_siamese()
    made: dict[int, HiddenStateCache | None] = {}

    def unreadable(place: Path, given: list) -> HiddenStateCache:
        if threading.current_thread().name == "1" and not readable:
            raise FileNotFoundError("not on this node")
        return opened(place, given)

    def process(rank: int) -> None:
        dist_context = DistributedContext(rank=rank, size=2, store=TCPStore("127.0.0.1", store.port, is_master=False))
        made[rank] = found(dist_context=dist_context, model=model)

    monkeypatch.setattr(stage, "open_cache", unreadable)
    threads = [threading.Thread(target=process, args=(n,), name=str(n)) for n in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
    assert [made[rank] is not None for rank in range(2)] == [readable, readable]
    told = capsys.readouterr().err
    assert ("cannot be read by process 1" in told) is not readable


@pytest.mark.slow
def test_a_run_from_the_adapters_start_has_the_losses_of_one_without(tmp_path: Path) -> None:
    """At its start an adapter changes nothing: the bank's rounding must not move the gate."""
    losses = {}
    for choice in ("off", "disk"):
        chosen = config(
            f"hidden_state_cache={choice}", "data.max_train_examples=128", "trainer.num_epochs=1",
            "evaluation.tasks=[target]", "evaluation.limit=2",
        )  # fmt: skip
        run_experiment(chosen, runs_root=tmp_path / choice)
        (log,) = (tmp_path / choice).glob("*-imsm-*/log.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        losses[choice] = [row["loss"] for row in rows if "loss" in row]
        (record,) = (tmp_path / choice).glob("*-imsm-*/training.json")
        assert json.loads(record.read_text())["memory_bank"] == (choice == "disk")
    assert len(losses["off"]) == 8
    assert losses["disk"] == pytest.approx(losses["off"], abs=1e-5, rel=0)
