"""Task sequences on the miniature: initial weights, marks, summary and resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from imsm.config.identity import run_name
from imsm.config.stages import expand_stages
from imsm.evaluation.result import read_result, write_result
from imsm.evaluation.statistics.continual import backward_transfer
from imsm.pipeline import run as pipeline_run
from imsm.pipeline.continual import plan_stages, run_stages
from imsm.pipeline.train import check_resumable_method
from imsm.reporting.continual import report as sequence
from imsm.training import trainer
from imsm.utils.errors import UserError
from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir, read_training
from tests.helpers.config import config
from tests.helpers.word_run import interrupt_at

SMALL = (
    "task_sequence=[mrpc,cola]", "data.max_train_examples=8", "trainer.num_epochs=1", "trainer.global_batch_size=4",
    "evaluation.tasks=[target]", "evaluation.limit=6",
)  # fmt: skip
RESAMPLES = "imsm.reporting.continual.record._RESAMPLES"
ADAPTER = "model/adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RESAMPLES, 60)


def run_sequence(root: Path, *more: str, method: str = "peft") -> list[Path]:
    """Run a small sequence; return the folders of its stages."""
    sequence_config = config(*SMALL, *more, f"method={method}")
    run_stages(sequence_config, runs_root=root)
    return [root / run_name(stage) for stage in expand_stages(sequence_config)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], list[Any]]]:
    """The folders of a finished sequence, and the trainable weights of each stage before its first step."""
    initial: list[dict[str, torch.Tensor]] = []
    train = pipeline_run.train

    def recording(*arguments: Any, **keywords: Any) -> Any:
        values = keywords["engine"].trainable_state_dict()
        initial.append({name: value.clone() for name, value in values.items()})
        return train(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_run, "train", recording)
        patch.setattr(RESAMPLES, 60)
        yield run_sequence(tmp_path_factory.mktemp("runs")), initial


def test_a_stage_starts_from_the_weights_of_the_previous_one(finished: tuple[list[Path], list[Any]]) -> None:
    folders, (first, second) = finished
    saved = load_file(folders[0] / ADAPTER)
    loaded = {name.replace(".default", ""): value for name, value in second.items()}
    assert len(saved) == len(loaded)
    for name, value in saved.items():
        (found,) = [v for n, v in loaded.items() if n.endswith(name)]
        assert found.equal(value), name
    assert any(not value.equal(second[name]) for name, value in first.items())
    log = [json.loads(line) for line in (folders[1] / "log.jsonl").open()]
    steps = [record["step"] for record in log if "loss" in record]
    assert steps == [1, 2]  # with its own schedule


def test_the_tasks_trained_so_far_are_marked(finished: tuple[list[Path], list[Any]]) -> None:
    folders, _ = finished
    found = [read_result(folder)["evaluation"] for folder in folders]
    marks = [{name: e["trained_on"] for name, e in f["tasks"].items()} for f in found]
    assert marks == [{"mrpc": True, "cola": False}, {"mrpc": True, "cola": True}]
    assert not any(entry["trained_on"] for entry in found[1]["original"].values())


def test_the_summary_contains_the_scores_of_every_stage(finished: tuple[list[Path], list[Any]]) -> None:
    folders, _ = finished
    record = json.loads((folders[1] / "sequence.json").read_text())
    results = [read_result(folder)["evaluation"] for folder in folders]
    rows = [results[1]["original"], results[0]["tasks"], results[1]["tasks"]]
    columns = [("mrpc", "accuracy"), ("cola", "mcc")]
    expected = [[row[task]["metrics"][metric] for task, metric in columns] for row in rows]
    assert record["scores"] == expected
    table = pandas.read_csv(folders[1] / "sequence.csv", index_col="after")
    assert table.to_numpy() == pytest.approx(np.array(expected), rel=1e-4)
    bwt = record["measures"]["BWT"]
    assert bwt["value"] == pytest.approx(expected[2][0] - expected[1][0])
    assert bwt["value"] == pytest.approx(float(backward_transfer(table.to_numpy())), abs=1e-3)
    assert bwt["low"] <= bwt["value"] <= bwt["high"]
    assert (folders[1] / "sequence.png").read_bytes().startswith(b"\x89PNG")
    assert "| original | " in (folders[1] / "sequence.md").read_text()


def test_a_finished_sequence_trains_nothing_and_gives_the_same_summary(
    finished: tuple[list[Path], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = finished
    summary = (folders[1] / "sequence.json").read_text()
    monkeypatch.setattr(trainer, "train_step", None)  # a step would fail
    assert run_sequence(folders[0].parent) == folders
    assert (folders[1] / "sequence.json").read_text() == summary
    # a longer sequence reuses these stages: only its last one starts
    for folder in folders[0].parent.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(TypeError, match="NoneType"):
        run_sequence(tmp_path, "task_sequence=[mrpc,cola,ropes]")
    started = tmp_path / run_name(
        expand_stages(config(*SMALL[1:], "task_sequence=[mrpc,cola,ropes]", "method=peft"))[-1]
    )
    assert json.loads((started / "input_hashes.json").read_text())["start"]


@pytest.mark.slow
def test_runs_with_different_tasks_are_compared_on_the_common_ones(
    finished: tuple[list[Path], list[Any]], tmp_path: Path
) -> None:
    folders, _ = finished
    other = tmp_path / "other"
    for folder in folders[0].parent.iterdir():
        for root in (tmp_path / "one", other):
            shutil.copytree(folder, root / folder.name)
    place = other / folders[1].name
    result = read_result(place)
    result["evaluation"]["tasks"]["webq"] = dict(result["evaluation"]["tasks"]["cola"])
    write_result(place, result)
    sequence.write_sequence_report(tmp_path / "one" / folders[1].name, other / folders[1].name)
    assert "webq" in (other / folders[1].name / "sequence.csv").read_text()
    assert "webq" not in (other / folders[1].name / "sequence.md").read_text()
    del result["evaluation"]["tasks"]["mrpc"]
    write_result(place, result)
    with pytest.raises(UserError, match="mrpc is missing"):
        sequence.write_sequence_report(other / folders[1].name)


def test_a_sequence_interrupted_in_a_later_stage_resumes_to_the_same_weights(
    finished: tuple[list[Path], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = finished
    shutil.copytree(folders[0], tmp_path / folders[0].name)  # the first stage is finished
    steps = interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run_sequence(tmp_path)
    assert not (tmp_path / folders[1].name / "sequence.json").exists()
    resumed = run_sequence(tmp_path)
    assert steps == [1, 2]
    assert (resumed[1] / ADAPTER).read_bytes() == (folders[1] / ADAPTER).read_bytes()


def test_a_stage_whose_parent_changed_is_rejected(finished: tuple[list[Path], list[Any]], tmp_path: Path) -> None:
    folders, _ = finished
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    run = RunDir(tmp_path / folders[0].name)
    values = load_file(run.path / ADAPTER)
    save_file({n: v + 1 for n, v in values.items()}, run.path / ADAPTER)
    with pytest.raises(UserError, match="changed since it was saved"):
        run_sequence(tmp_path)
    write_hashed_json(run.trained, read_training(run) | {MODEL_HASH: write_manifest(run.model)})
    with pytest.raises(UserError, match="was trained again since this stage started from it"):
        run_sequence(tmp_path)


def test_a_method_that_cannot_resume_is_rejected_before_the_first_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^peft=p_tuning: "):
        run_sequence(tmp_path, "peft=p_tuning")
    assert not list(tmp_path.iterdir())
    check_resumable_method(config(*SMALL, "peft=prefix_tuning"))


def test_a_plan_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    plan_stages(config("task_sequence=[gsm8k,mrpc,cola]", "mode=plan"), compact=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("stage ")] == [
        "stage 1 of 3: gsm8k",
        "stage 2 of 3: mrpc, after gsm8k",
        "stage 3 of 3: cola, after gsm8k and mrpc",
    ]


@pytest.mark.slow
def test_peft_and_imsm_sequences_are_compared(
    finished: tuple[list[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folders, _ = finished
    imsm_folders = run_sequence(folders[0].parent, method="imsm")
    gate = [load_file(folder / "model/gate.safetensors") for folder in imsm_folders]
    assert any(not value.equal(gate[1][name]) for name, value in gate[0].items())
    shown = capsys.readouterr().out
    assert "imsm − peft" in shown
    records = [json.loads((f / "sequence.json").read_text()) for f in (folders[1], imsm_folders[1])]
    assert records[0]["scores"][0] == records[1]["scores"][0]  # one original
    text = (imsm_folders[1] / "sequence.md").read_text()
    assert text.index("## peft") < text.index("## imsm")
    sequence.write_sequence_report(folders[1], imsm_folders[1])
    with pytest.raises(UserError, match="is not a later stage of a task sequence"):
        sequence.write_sequence_report(imsm_folders[0])
