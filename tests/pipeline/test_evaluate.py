"""Which tasks count as trained on, and that a changed model is never evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imsm.config.identity import run_identity
from imsm.config.schema import FrozenAdapterConfig
from imsm.config.stages import expand_stages
from imsm.evaluation.result import read_result
from imsm.pipeline.evaluate import learned_tasks
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_training
from tests.helpers.config import config
from tests.helpers.damage import flip_bit
from tests.helpers.word_run import run_words


def test_replay_tasks_are_learned_but_excluded_tests_are_not() -> None:
    replaying = config("peft=loramoe_blc_replay", "data=gsm8k")
    assert set(replaying.replay_tasks) > {"webq"}
    assert learned_tasks(replaying) == ["gsm8k", "webq"]
    assert learned_tasks(config("peft=lora", "data=gsm8k")) == ["gsm8k"]


def test_tasks_of_parent_runs_are_learned_with_their_replay() -> None:
    *_, last = expand_stages(config("peft=lora", "task_sequence=[cola,mrpc]"))
    assert learned_tasks(last) == ["cola", "mrpc"]
    replaying = config("peft=loramoe_blc_replay", "data=gsm8k")
    frozen = FrozenAdapterConfig(identity=run_identity(replaying), tasks=["gsm8k"])
    child = config("peft=loramoe_blc_replay", "data=gsm8k").model_copy(update={"frozen_run": frozen})
    assert set(learned_tasks(child)) == {"gsm8k", "webq"}


RUN = ("trainer.num_epochs=1", "logger=none")
EVALUATE = (*RUN, "mode=evaluate")


@pytest.fixture(scope="module")
def finished(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; restored by every test."""
    return run_words(word_files, tmp_path_factory.mktemp("finished"), *RUN)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("adapter/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 96'),
        ("config.json", '"pooling": "mean"', '"pooling": "last"'),
    ],
)
def test_a_model_that_was_edited_after_training_is_not_evaluated_and_leaves_no_wrong_response(
    word_files: Path, finished: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    without_responses = shutil.ignore_patterns("response_cache")
    shutil.copytree(finished.parent, tmp_path / "runs", ignore=without_responses)
    run = RunDir(tmp_path / "runs" / finished.name)
    before = read_result(run.path)
    path = run.model / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{name}: changed since it was saved"):
        run_words(word_files, run.path.parent, *EVALUATE)
    path.write_text(text)
    run_words(word_files, run.path.parent, *EVALUATE)
    after = read_result(run.path)
    assert after["fingerprints"] == before["fingerprints"]
    for one, other in zip(before["evaluation"]["tasks"].values(), after["evaluation"]["tasks"].values(), strict=True):
        assert one["metrics"] == other["metrics"] and one["predictions_sha256"] == other["predictions_sha256"]


def test_a_rotted_weight_is_not_evaluated_even_if_every_response_is_cached(word_files: Path, finished: Path) -> None:
    gate = finished / "model" / "gate.safetensors"
    flip_bit(gate)
    try:
        with pytest.raises(UserError, match=r"gate\.safetensors: changed since it was saved"):
            run_words(word_files, finished.parent, *EVALUATE)
    finally:
        flip_bit(gate)


def test_an_edited_result_and_edited_predictions_are_written_again_from_the_cached_responses(
    word_files: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_result(finished)
    (predictions,) = finished.glob("evaluation/*/predictions.jsonl")
    text = predictions.read_text()
    for path in (finished / "result.json", predictions):
        path.write_text(path.read_text().replace("0.0", "1.0"))
    monkeypatch.setattr("imsm.pipeline.run.load_run_model", lambda *_, **__: pytest.fail("a model was loaded"))
    run_words(word_files, finished.parent, *EVALUATE)
    assert read_result(finished)["evaluation"] == before["evaluation"]
    assert predictions.read_text() == text


def test_a_result_records_everything_that_its_responses_depend_on(finished: Path) -> None:
    result, model = read_result(finished), finished / "model"
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    inputs = {"backbone", "data", "dtype", "attention", "device", "responses"}
    assert set(result["fingerprints"]) == files - {"hashes.json"} | inputs
    assert result["machine"] == result["training"]["machine"]
    assert set(result["machine"]) == {"device", "device_name", "cpu", "threads"}
    assert result["training"]["hidden_state_cache"] in ("disk", "off")
    assert read_training(RunDir(finished)) == result["training"]
