"""`evaluation.backend=vllm`: another engine's answers are filed under their own key and compared with ours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from imsm.cli.main import main
from imsm.evaluation.result import read_result
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import vllm_backend
from imsm.pipeline.vllm_backend import PYTHON
from imsm.utils.errors import RunError
from tests.helpers.word_run import run_words, word_overrides

RUN = ("trainer.num_epochs=60",)
WITH_VLLM = (*RUN, "evaluation.backend=vllm")


class FakeEngine:
    """Answers as vLLM does, with `generate()`; the first ``wrong`` answers begin with another token."""

    def __init__(self, run: Path) -> None:
        self.run, self.wrong = run, 0
        self.calls: list[dict[str, Any]] = []

    def __call__(self, work: dict[str, Any], folder: Path) -> dict[str, Any]:
        self.calls.append(work)
        (requests,) = work["rounds"]
        streams = {request["arguments"].get("imsm_stream", "original") for request in requests}
        (stream,) = streams
        if stream == "original":
            model: Any = AutoModelForCausalLM.from_pretrained(work["model"])
        else:
            assert (Path(work["model"]) / "imsm.safetensors").is_file()
            model = SiameseForCausalLM.from_pretrained(self.run)
            model.stream = stream
        answers = []
        for index, request in enumerate(requests):
            ids, eos = torch.tensor([request["prompt"]]), work["stop_token_ids"]
            limit = request["max_tokens"]
            output = model.generate(ids, max_new_tokens=limit, do_sample=False, eos_token_id=eos, pad_token_id=0)
            tokens = output[0, ids.shape[1] :].tolist()
            if index < self.wrong:
                tokens[0] = 5 if tokens[0] != 5 else 6
            gate = [[0.25, 0.1]] * len(tokens) if "imsm_record" in request["arguments"] else None
            answers.append({"tokens": tokens, "logprobs": [], "gate": gate})
        return {"rounds": [answers], "seconds": [4.0]}


@pytest.fixture
def runs(word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(PYTHON, sys.executable)
    yield run_words(word_files, tmp_path / "runs", *RUN)


@pytest.fixture
def engine(runs: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine(runs)
    monkeypatch.setattr(vllm_backend, "run_engine", fake)
    return fake


def test_answers_have_a_key_of_their_own_and_agree(word_files: Path, runs: Path, engine: FakeEngine) -> None:
    before = read_result(runs)
    run_words(word_files, runs.parent, *WITH_VLLM)
    after = read_result(runs)
    assert [len(call["rounds"][0]) for call in engine.calls] == [8, 8]  # original, interwoven
    assert after["fingerprints"]["responses"] != before["fingerprints"]["responses"]
    (task,) = after["evaluation"]["tasks"]
    entry, old = after["evaluation"]["tasks"][task], before["evaluation"]["tasks"][task]
    assert entry["metrics"] == old["metrics"] and entry["gate_mean"] == 0.25
    assert entry["reference_loglik"] == pytest.approx(old["reference_loglik"], abs=1e-6)
    assert entry["seconds"] == pytest.approx(4.0)
    agreement = {"examples": 8, "equal": 8, "other_score": next(iter(old["metrics"].values()))}
    assert after["evaluation"]["backend"] == {"engine": "vllm 0.32", "agreement": {task: agreement}}
    report = (runs / "report.md").read_text()
    assert "Evaluation backend" in report and "8 of 8" in report
    # all cached: the engine is not started again, and transformers' answers are still there
    run_words(word_files, runs.parent, *WITH_VLLM)
    assert len(engine.calls) == 2
    run_words(word_files, runs.parent, *RUN)
    again = read_result(runs)["evaluation"]
    assert again["tasks"] == before["evaluation"]["tasks"] and "backend" not in again


def test_different_answers_are_counted(word_files: Path, runs: Path, engine: FakeEngine) -> None:
    engine.wrong = 3
    run_words(word_files, runs.parent, *WITH_VLLM)
    (agreement,) = read_result(runs)["evaluation"]["backend"]["agreement"].values()
    assert (agreement["equal"], agreement["examples"]) == (5, 8)


def test_without_answers_of_transformers_there_is_no_agreement(
    word_files: Path, runs: Path, engine: FakeEngine
) -> None:
    shutil.rmtree(runs.parent / "response_cache")
    run_words(word_files, runs.parent, *WITH_VLLM)
    assert read_result(runs)["evaluation"]["backend"]["agreement"] == {}


def test_a_failing_process_is_one_line(word_files: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, "/bin/false")
    with pytest.raises(RunError, match="its process ended with exit code 1"):
        run_words(word_files, runs.parent, *WITH_VLLM)


def test_no_folder_stays_behind(
    word_files: Path, runs: Path, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    (killed := tmp_path / "cache" / "vllm-999999999-abc").mkdir(parents=True)
    run_words(word_files, runs.parent, *WITH_VLLM)
    assert not killed.exists() and not list((tmp_path / "cache").glob("vllm-*"))
    assert [Path(call["model"]).is_relative_to(tmp_path / "cache") for call in engine.calls] == [False, True]


@pytest.mark.parametrize("value", [None, "/nowhere/python"])
def test_the_environment_is_checked_before_anything_else(
    word_files: Path, value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    if value:
        monkeypatch.setenv(PYTHON, value)
    assert main(["run", *word_overrides(word_files, "evaluation.backend=vllm")]) == 2
    assert f"evaluation.backend=vllm: {PYTHON}={value or 'is not set'}" in capsys.readouterr().err
