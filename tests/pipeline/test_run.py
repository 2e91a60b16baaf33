"""A run from its configuration to its report, on a tiny model and local data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import imsm
from imsm.cli.main import main
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from imsm.pipeline import run as pipeline_run
from imsm.pipeline.run import run_experiment
from imsm.training import trainer
from imsm.utils import stop_signals
from imsm.utils.errors import RunError, UserError
from tests.helpers.config import config
from tests.helpers.word_run import WORDS, interrupt_at, run_words, word_overrides


def test_a_run_writes_its_model_responses_and_report(word_files: Path, tmp_path: Path) -> None:
    folder = run_words(word_files, tmp_path)
    result = json.loads((folder / "result.json").read_text())
    entry = result["evaluation"]["tasks"]["jsonl"]
    assert entry["num_examples"] == len(WORDS)
    assert entry["headline"] == "contain"
    assert result["trainable_parameters"]["gate"] == 4 * 32 * 8 + 8 * 32
    assert result["training"]["steps"] == 16
    log = [json.loads(line) for line in (folder / "log.jsonl").open()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert len(losses) == 16
    assert losses[-1] < losses[0]
    report = (folder / "report.md").read_text()
    assert "imsm" in report and "original" in report
    assert not list(folder.glob("checkpoint*"))
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {
        ".json", ".jsonl", ".md", ".safetensors", "", ".jinja", ".html", ".csv", ".png",
    }  # fmt: skip

    # the saved model generates the evaluated responses, token by token
    model = imsm.SiameseForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    (predictions,) = folder.glob("evaluation/jsonl-*/predictions.jsonl")
    for word, line in zip(WORDS, predictions.open(), strict=True):
        prompt = tokenizer(f"after {word} comes", return_tensors="pt")
        out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
        new = out[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == json.loads(line)["response"]


def test_a_deterministic_run_prepares_cuda_and_trains_so(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        seen.append((options["deterministic"], os.environ["CUBLAS_WORKSPACE_CONFIG"]))
        raise KeyboardInterrupt

    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        run_words(word_files, tmp_path, "trainer.deterministic=true")
    assert seen == [(True, ":4096:8")]


def test_at_most_four_project_frames_lie_above_the_training_loop(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[str] = []

    class Reached(Exception):
        """Raised instead of training."""

    def train(*_: object, **__: object) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.partition(".")[0] == "imsm":
                frames.append(f"{module}.{frame.f_code.co_name}")
            frame = frame.f_back  # type: ignore[assignment]
        raise Reached

    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    monkeypatch.setattr(pipeline_run, "train", train)
    monkeypatch.setattr(sys, "argv", ["imsm"])
    assert main(["run", *word_overrides(word_files)]) == 1
    assert frames[0] == "imsm.pipeline.run.run_experiment"
    assert len(frames) <= 4, frames


def test_all_methods_are_compared_and_the_original_generates_once(
    word_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_words(word_files, tmp_path, method="original")
    (response_cache,) = tmp_path.glob("response_cache/*.sqlite")
    responses = response_cache.read_bytes()
    peft = run_words(word_files, tmp_path, method="peft")
    folder = run_words(word_files, tmp_path, method="imsm")
    assert response_cache.read_bytes() == responses
    report = (folder / "report.md").read_text()
    assert all(f"| {method} " in report for method in ("original", "peft", "imsm"))
    assert not (peft / "model" / "gate.safetensors").exists()
    shown = capsys.readouterr().out
    assert all(method in shown for method in ("original", "peft", "imsm"))


def test_peft_and_imsm_start_from_the_same_adapter(word_files: Path, tmp_path: Path) -> None:
    """With a negligible learning rate the trained adapter is the initial one."""
    frozen = ("trainer.learning_rate=1e-12", "trainer.num_epochs=1")
    folders = [run_words(word_files, tmp_path, *frozen, method=method) for method in ("peft", "imsm")]
    peft, imsm_adapter = (load_file(folder / "model/adapter/adapter_model.safetensors") for folder in folders)
    assert peft.keys() == imsm_adapter.keys()
    for name in peft:
        assert torch.allclose(peft[name], imsm_adapter[name], atol=1e-9), name


def test_a_finished_run_is_not_trained_again(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_words(word_files, tmp_path)
    evaluation = json.loads((folder / "result.json").read_text())["evaluation"]
    monkeypatch.setattr(trainer, "train_step", None)  # a step would fail
    run_words(word_files, tmp_path)
    assert json.loads((folder / "result.json").read_text())["evaluation"] == evaluation
    run_words(word_files, tmp_path, "mode=evaluate", "evaluation.limit=5")
    result = json.loads((folder / "result.json").read_text())
    assert result["evaluation"]["tasks"]["jsonl"]["num_examples"] == 5
    assert result["training"]["steps"] == 16


def test_an_interrupted_run_resumes_to_the_same_weights(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = run_words(word_files, tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run_words(word_files, tmp_path / "resumed")
    assert "finished steps are kept in" in stop_signals.message()
    resumed = run_words(word_files, tmp_path / "resumed")
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        assert (resumed / "model" / file).read_bytes() == (uninterrupted / "model" / file).read_bytes()


def test_the_folder_of_another_run_is_rejected_with_the_difference(word_files: Path, tmp_path: Path) -> None:
    run_dir = f"run_dir={tmp_path / 'mine'}"
    run_experiment(config(*word_overrides(word_files, run_dir, "trainer.num_epochs=1")), runs_root=tmp_path)
    with pytest.raises(UserError, match=r"trainer.num_epochs: saved 1, now 2"):
        run_experiment(config(*word_overrides(word_files, run_dir, "trainer.num_epochs=2")), runs_root=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="contains files but no run"):
        run_experiment(config(*word_overrides(word_files, f"run_dir={other}")), runs_root=tmp_path)
    assert sorted(path.name for path in other.iterdir() if path.name != "lock") == ["thesis.tex"]


def test_evaluating_an_untrained_run_is_rejected(word_files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mode=evaluate: .* mode=run$"):
        run_experiment(config(*word_overrides(word_files, "mode=evaluate")), runs_root=tmp_path)


def test_a_nan_loss_ends_the_run_and_keeps_the_last_good_step(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_forward = SiameseForCausalLM._training_forward
    calls = []

    def nan_at_fourth_call(*arguments: Any) -> SiameseOutput:
        output = training_forward(*arguments)
        calls.append(output)
        output.loss = output.loss * (float("nan") if len(calls) == 4 else 1)
        return output

    monkeypatch.setattr(SiameseForCausalLM, "_training_forward", nan_at_fourth_call)
    with pytest.raises(RunError, match=r"the loss of step 4 is nan.*last good checkpoint"):
        run_words(word_files, tmp_path)
    (folder,) = tmp_path.glob("*-imsm-*")
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["training_state"]["step"] == 3
    assert not (folder / "training.json").exists()
    run_words(word_files, tmp_path)  # resumes after step 3
    assert len(calls) == 4 + 13


@pytest.mark.parametrize(
    "overrides",
    [
        ("backbone.dtype=bfloat16", "trainer.gradient_checkpointing=true"),
        ("peft=adalora", "gate=no_query"),
        ("peft=ia3", "gate=no_gate"),
        ("peft=dora", "gate.pooling=last", "trainer.micro_batch_size=1"),
        ("trainer=paper_code", "trainer.learning_rate=0.03"),
    ],
)
def test_other_options_run_to_the_end(word_files: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    folder = run_words(word_files, tmp_path, "trainer.num_epochs=1", *overrides)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert imsm.SiameseForCausalLM.from_pretrained(folder).stream == "interwoven"
