"""Runs that this machine's memory cannot hold are refused before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.config.compose import ConfigComposer
from imsm.pipeline.plan import fit, machine
from imsm.pipeline.plan.fit import check_fits
from imsm.pipeline.plan.machine import machine_memory
from imsm.pipeline.plan.plan import make_plan
from imsm.pipeline.run import run_experiment
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.word_run import word_overrides

ABSURD = (
    "gate.rank=100000000",
    "peft.r=100000000",
    "trainer.global_batch_size=1000000000",
    "trainer.num_epochs=2000000000",
    "evaluation.batch_size=1000000000",
    "data.max_new_tokens=1000000000",
)


@pytest.mark.parametrize("override", ABSURD)
def test_an_absurd_size_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(UserError) as refused:
        check_fits(config(override), prompt_tokens=50, processes=None)
    assert str(refused.value).startswith(f"{override}: ") and "\n" not in str(refused.value)


def test_a_backbone_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "machine_memory", lambda device: 10 * 10**9)
    with pytest.raises(UserError, match=r"^backbone=llama3: the model needs about 16\.\d+ GB"):
        check_fits(config("backbone=llama3"), prompt_tokens=50, processes=None)
    check_fits(config("backbone=gemma3_270m"), prompt_tokens=50, processes=None)


@pytest.mark.parametrize("method", ["original", "peft", "imsm"])
def test_usual_sizes_fit(method: str) -> None:
    check_fits(config(f"method={method}"), prompt_tokens=50, processes=None)


def test_a_run_is_refused_before_its_model_is_built(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imsm.pipeline.run.prepare_training", None)  # a call would fail
    with pytest.raises(UserError, match=r"^gate\.rank=100000000: "):
        run_experiment(config(*word_overrides(word_files, "gate.rank=100000000")), runs_root=tmp_path)


def test_the_plan_says_in_one_line_that_the_run_does_not_fit() -> None:
    (note,) = [note for note in make_plan(config("mode=plan", "gate.rank=100000000")).notes if "fit" in note]
    assert note.startswith("does not fit on this machine: gate.rank=100000000: ")
    assert not any("fit" in note for note in make_plan(config("mode=plan")).notes)


def test_a_container_may_have_less_memory_than_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    total = machine_memory("cpu")
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "missing")))
    assert machine_memory("cpu") >= total
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert machine_memory("cpu") == 1_000_000


@pytest.mark.parametrize("key", ["gate.rank", "trainer.num_epochs", "trainer.global_batch_size", "peft.r"])
def test_a_number_that_overflows_is_an_invalid_value(key: str) -> None:
    (line,) = ConfigComposer().validate([f"{key}=99999999999"], sweep=False)
    assert line.startswith(f"{key}=99999999999: ")
