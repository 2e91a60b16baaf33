"""Whether training has a hidden-state cache: settings, limits, and agreement of all processes."""

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
from imsm.pipeline import hidden_state_cache
from imsm.pipeline.hidden_state_cache import open_hidden_state_cache, precompute_cache
from imsm.pipeline.run import run_experiment
from imsm.training.hidden_state_store import caches_dir
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.models.siamese.tiny import tiny_siamese
from tests.training.tiny_run import tiny_examples


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))


def opened(
    *overrides: str, dist_context: DistributedContext | None = None, model: SiameseForCausalLM | None = None
) -> HiddenStateCache | None:
    run_config: RunConfig = config(*overrides)
    return open_hidden_state_cache(
        run_config,
        model or tiny_siamese(),
        tiny_examples(),
        pad_id=0,
        dist_context=dist_context or DistributedContext(),
    )


def number_of_caches() -> int:
    return len(list(caches_dir().glob("*/data")))


def test_auto_and_disk_share_a_cache_and_ram_writes_none() -> None:
    in_memory = opened("hidden_state_cache=ram")
    assert in_memory is not None and number_of_caches() == 0
    for setting in ("auto", "disk"):
        on_disk = opened(f"hidden_state_cache={setting}")
        assert on_disk is not None and torch.equal(on_disk.hidden_states, in_memory.hidden_states)
    assert number_of_caches() == 1


@pytest.mark.parametrize(
    "overrides", [("hidden_state_cache=off",), ("hidden_state_cache=disk", "method=peft"), ("method=original",)]
)
def test_a_run_that_does_not_read_a_cache_computes_none(overrides: tuple[str, ...]) -> None:
    assert opened(*overrides) is None and not caches_dir().exists()


def test_peft_with_a_kl_penalty_has_a_cache() -> None:
    assert opened("method=peft", "trainer.kl_beta=0.1") is not None


def test_the_cache_settings_do_not_change_the_identity() -> None:
    for override in ("hidden_state_cache=off", "hidden_state_cache_gb=1.0"):
        assert run_identity(config(override)) == run_identity(config())


TOO_SMALL = "hidden_state_cache_gb=1.0e-06"


def test_a_cache_over_the_limit_is_off_or_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert opened(TOO_SMALL) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hidden_state_cache=auto: off, it takes ") and "hidden_state_cache_gb=1e-06" in line
    for setting in ("disk", "ram"):
        with pytest.raises(UserError, match=rf"hidden_state_cache={setting}: it takes .*more than"):
            opened(TOO_SMALL, f"hidden_state_cache={setting}")
    with pytest.raises(UserError, match="hidden_state_cache=disk: it takes"):
        precompute_cache(config(TOO_SMALL, "hidden_state_cache=disk"), tiny_siamese(), tiny_examples(), pad_id=0)
    assert number_of_caches() == 0


def test_an_existing_cache_is_used_whatever_the_limit() -> None:
    assert opened() is not None and opened(TOO_SMALL) is not None


def test_existing_caches_count_towards_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert opened("hidden_state_cache_gb=1.0e-05") is not None
    assert opened("hidden_state_cache_gb=1.0e-05", "gate.pooling=max") is None
    assert "of other caches" in capsys.readouterr().err


def test_a_full_disk_turns_the_cache_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil._ntuple_diskusage(10**6, 10**6, 10)
    monkeypatch.setattr(hidden_state_cache.shutil, "disk_usage", lambda path: usage)
    assert opened() is None
    assert "10 B free (set IMSM_CACHE" in capsys.readouterr().err


def test_an_unwritable_cache_is_off_or_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    caches_dir().parent.mkdir(parents=True)
    caches_dir().write_text("in the way")
    assert opened() is None
    assert "could not be written" in capsys.readouterr().err
    with pytest.raises(UserError, match="could not be written"):
        opened("hidden_state_cache=disk")


@pytest.mark.parametrize("readable", [True, False], ids=["all can read", "one cannot"])
def test_all_processes_decide_alike(
    readable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    open_cache = hidden_state_cache.open_cache
    model = tiny_siamese()
    caches: dict[int, HiddenStateCache | None] = {}

    def unreadable_in_process_1(folder: Path, examples: list) -> HiddenStateCache:
        if threading.current_thread().name == "1" and not readable:
            raise FileNotFoundError("not on this node")
        return open_cache(folder, examples)

    def process(rank: int) -> None:
        dist_context = DistributedContext(
            rank=rank, world_size=2, store=TCPStore("127.0.0.1", store.port, is_master=False)
        )
        caches[rank] = opened(dist_context=dist_context, model=model)

    monkeypatch.setattr(hidden_state_cache, "open_cache", unreadable_in_process_1)
    threads = [threading.Thread(target=process, args=(n,), name=str(n)) for n in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
    assert [caches[rank] is not None for rank in range(2)] == [readable, readable]
    errors = capsys.readouterr().err
    assert ("cannot be read by process 1" in errors) is not readable


@pytest.mark.slow
def test_training_with_a_cache_has_the_losses_of_training_without(tmp_path: Path) -> None:
    """A new adapter changes nothing, so the rounding of the cache must not move the gate."""
    losses = {}
    for setting in ("off", "disk"):
        run_config = config(
            f"hidden_state_cache={setting}", "data.max_train_examples=128", "trainer.num_epochs=1",
            "evaluation.tasks=[target]", "evaluation.limit=2",
        )  # fmt: skip
        run_experiment(run_config, runs_root=tmp_path / setting)
        (log,) = (tmp_path / setting).glob("*-imsm-*/log.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        losses[setting] = [row["loss"] for row in rows if "loss" in row]
        (record,) = (tmp_path / setting).glob("*-imsm-*/training.json")
        assert json.loads(record.read_text())["hidden_state_cache"] == setting
    assert len(losses["off"]) == 8
    assert losses["disk"] == pytest.approx(losses["off"], abs=1e-5, rel=0)
