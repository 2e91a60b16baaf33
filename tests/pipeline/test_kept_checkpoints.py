"""Checkpoints that are kept and evaluated: the training's path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imsm.config.identity import run_name
from imsm.distributed.context import DistributedContext
from imsm.evaluation.result import read_result
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import evaluate
from imsm.pipeline.kept_checkpoints import keep_checkpoint, kept_checkpoints
from imsm.pipeline.run import run_experiment
from imsm.pipeline.train import _check_keeping
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir
from tests.helpers.config import config
from tests.helpers.damage import flip_bit
from tests.helpers.word_run import interrupt_at, run_words, word_overrides, write_word_files
from tests.training.tiny_run import TinyRun

PATH = ("evaluation.checkpoints=true", "trainer.save_steps=5")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_files(tmp_path_factory.mktemp("files"))


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return the training's path without times."""
    path = read_result(folder)["training"]["path"]
    timed = ("seconds", "predictions_sha256")
    return [
        {"step": each["step"]}
        | {name: {k: v for k, v in task.items() if k not in timed} for name, task in each["tasks"].items()}
        for each in path
    ]


def test_a_kept_model_is_replaced_and_verified(tmp_path: Path) -> None:
    training, run = TinyRun(tmp_path), RunDir(tmp_path)
    for step in (20, 10, 20):
        keep_checkpoint(run, step, training.model, engine=training.engine, dist_context=DistributedContext())
    assert [step for step, *_ in kept_checkpoints(run)] == [10, 20]
    *_, (_, kept, files) = kept_checkpoints(run)
    assert {"gate.safetensors", "adapter/adapter_model.safetensors"} <= {*files}
    assert not list(run.kept_checkpoints.glob(".*"))
    flip_bit(kept.model / "gate.safetensors")
    with pytest.raises(UserError, match=r"gate.safetensors: changed .*remove the folder .*step-00000020"):
        list(kept_checkpoints(run))


def test_fixed_steps_are_required() -> None:
    with pytest.raises(UserError, match=r"evaluation.checkpoints=true: .*set trainer.save_steps as well"):
        config("evaluation.checkpoints=true")


def test_methods_that_cannot_be_kept_are_refused() -> None:
    _check_keeping(config(*PATH))
    with pytest.raises(UserError, match=r"^evaluation.checkpoints=true: peft=p_tuning trains an encoder"):
        _check_keeping(config(*PATH, "peft=p_tuning"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["peft", "imsm"])
def test_every_checkpoint_is_evaluated_and_the_run_is_unchanged(
    files: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_words(files, tmp_path / "plain", method=method)
    folder = run_words(files, tmp_path / "path", *PATH, method=method)
    assert folder.name == plain.name  # one identity
    before, after = read_result(plain), read_result(folder)
    assert after["training"]["final_loss"] == before["training"]["final_loss"]
    weights = {name: value for name, value in before["fingerprints"].items() if name.endswith(".safetensors")}
    assert weights and weights.items() <= after["fingerprints"].items()
    found = entries(folder)
    assert [entry["step"] for entry in found] == [5, 10, 15]  # of 16
    losses = [entry["jsonl"]["reference_loglik"] for entry in found]
    assert losses == sorted(losses)  # it learns
    # independent: the same model, loaded by itself and evaluated as the trained model of a run
    for (_, kept, _), entry in zip(kept_checkpoints(RunDir(folder)), found, strict=True):
        model = SiameseForCausalLM.from_pretrained(kept.model)
        loaded = {n: p for n, p in model.named_parameters() if "lora" in n or n.startswith("gate.")}
        assert loaded and all(value.isfinite().all() for value in loaded.values())
        assert entry["jsonl"]["role"] == "target" and entry["jsonl"]["num_examples"] == 8
    # again: nothing is generated, and the path is the same
    monkeypatch.setattr(evaluate, "_load_weights", lambda *_: pytest.fail("a model was loaded"))
    run_experiment(config(*word_overrides(files, *PATH, method=method)), runs_root=tmp_path / "path")
    assert entries(folder) == found


@pytest.mark.slow
def test_an_interrupted_training_has_the_same_path(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = run_words(files, tmp_path / "complete", *PATH)
    expected = entries(complete)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 8)
        run_words(files, tmp_path / "parts", *PATH)
    resumed = run_words(files, tmp_path / "parts", *PATH)
    assert entries(resumed) == expected
    for (_, one, hashes), (_, other, others) in zip(
        kept_checkpoints(RunDir(complete)), kept_checkpoints(RunDir(resumed)), strict=True
    ):
        assert hashes == others and one.path.name == other.path.name


@pytest.mark.slow
def test_a_finished_run_without_checkpoints_is_told(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_words(files, tmp_path, method="peft")
    run_config = config(*word_overrides(files, *PATH, method="peft"))
    assert run_name(run_config) == folder.name
    run_experiment(run_config, runs_root=tmp_path)
    assert "warning: evaluation.checkpoints=true: " in capsys.readouterr().err
    assert read_result(folder)["training"]["path"] == []
