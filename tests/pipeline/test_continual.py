"""Sequences on the miniature: what a stage starts from, what is kept, what is told at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
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
from imsm.evaluation.result import read_result
from imsm.evaluation.statistics.continual import backward_transfer
from imsm.pipeline import train as training
from imsm.pipeline.continual import run_stages
from imsm.pipeline.dispatch import dispatch
from imsm.pipeline.train import check_resumable_method
from imsm.reporting.continual import report as sequence
from imsm.training import trainer as loop
from imsm.utils.errors import UserError
from tests.helpers.config import config

SMALL = (
    "task_sequence=[mrpc,cola]", "data.max_train_examples=8", "trainer.num_epochs=1", "trainer.global_batch_size=4",
    "evaluation.tasks=[target]", "evaluation.limit=6",
)  # fmt: skip
RESAMPLES = "imsm.reporting.continual.record._RESAMPLES"
ADAPTER = "model/adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RESAMPLES, 60)


def carry_out(root: Path, *more: str, method: str = "peft") -> list[Path]:
    """Carry a small sequence out; returns its stages' folders."""
    chosen = config(*SMALL, *more, f"method={method}")
    run_stages(chosen, runs_root=root)
    return [root / run_name(stage) for stage in expand_stages(chosen)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], list[Any]]]:
    """A finished sequence, and what each stage's engine held before its first step."""
    started: list[dict[str, torch.Tensor]] = []
    train = training.train

    def watching(*arguments: Any, **named: Any) -> Any:
        values = named["engine"].trainable_state_dict()
        started.append({name: value.clone() for name, value in values.items()})
        return train(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", watching)
        patch.setattr(RESAMPLES, 60)
        yield carry_out(tmp_path_factory.mktemp("runs")), started


def test_a_stage_starts_exactly_from_what_the_one_before_it_learned(watched: tuple[list[Path], list[Any]]) -> None:
    folders, (first, second) = watched
    left = load_file(folders[0] / ADAPTER)
    begun = {name.replace(".default", ""): value for name, value in second.items()}
    assert len(left) == len(begun)
    for name, value in left.items():
        (found,) = [v for n, v in begun.items() if n.endswith(name)]
        assert found.equal(value), name
    assert any(not value.equal(second[name]) for name, value in first.items())
    log = [json.loads(line) for line in (folders[1] / "log.jsonl").open()]
    steps = [record["step"] for record in log if "loss" in record]
    assert steps == [1, 2]  # a schedule of its own


def test_what_was_learned_so_far_is_marked(watched: tuple[list[Path], list[Any]]) -> None:
    folders, _ = watched
    found = [read_result(folder)["evaluation"] for folder in folders]
    marks = [{name: e["trained_on"] for name, e in f["tasks"].items()} for f in found]
    assert marks == [{"mrpc": True, "cola": False}, {"mrpc": True, "cola": True}]
    assert not any(entry["trained_on"] for entry in found[1]["original"].values())


def test_the_summary_has_the_scores_of_every_stage(watched: tuple[list[Path], list[Any]]) -> None:
    folders, _ = watched
    record = json.loads((folders[1] / "sequence.json").read_text())
    results = [read_result(folder)["evaluation"] for folder in folders]
    rows = [results[1]["original"], results[0]["tasks"], results[1]["tasks"]]
    columns = [("mrpc", "accuracy"), ("cola", "mcc")]
    wanted = [[row[task]["metrics"][metric] for task, metric in columns] for row in rows]
    assert record["scores"] == wanted
    table = pandas.read_csv(folders[1] / "sequence.csv", index_col="after")
    assert table.to_numpy() == pytest.approx(np.array(wanted), rel=1e-4)
    bwt = record["measures"]["BWT"]
    assert bwt["value"] == pytest.approx(wanted[2][0] - wanted[1][0])
    assert bwt["value"] == pytest.approx(float(backward_transfer(table.to_numpy())), abs=1e-3)
    assert bwt["low"] <= bwt["value"] <= bwt["high"]
    assert (folders[1] / "sequence.png").read_bytes().startswith(b"\x89PNG")
    assert "| original | " in (folders[1] / "sequence.md").read_text()


def test_a_finished_sequence_trains_nothing_and_says_the_same(
    watched: tuple[list[Path], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = watched
    before = (folders[1] / "sequence.json").read_text()
    monkeypatch.setattr(loop, "train_step", None)  # a step would fail
    assert carry_out(folders[0].parent) == folders
    assert (folders[1] / "sequence.json").read_text() == before
    # a longer one takes these stages over: only its own last one would begin
    for folder in folders[0].parent.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(TypeError, match="NoneType"):
        carry_out(tmp_path, "task_sequence=[mrpc,cola,ropes]")
    begun = tmp_path / run_name(
        expand_stages(config(*SMALL[1:], "task_sequence=[mrpc,cola,ropes]", "method=peft"))[-1]
    )
    assert json.loads((begun / "input_hashes.json").read_text())["start"]


@pytest.mark.slow
def test_arms_that_were_asked_other_tasks_too_are_compared_on_what_is_common(
    watched: tuple[list[Path], list[Any]], tmp_path: Path
) -> None:
    folders, _ = watched
    other = tmp_path / "other"
    for folder in folders[0].parent.iterdir():
        for root in (tmp_path / "one", other):
            shutil.copytree(folder, root / folder.name)
    place = other / folders[1].name / "result.json"
    result = json.loads(place.read_text())
    result["evaluation"]["tasks"]["webq"] = dict(result["evaluation"]["tasks"]["cola"])
    place.write_text(json.dumps(result))
    sequence.report(tmp_path / "one" / folders[1].name, other / folders[1].name)
    assert "webq" in (other / folders[1].name / "sequence.csv").read_text()
    assert "webq" not in (other / folders[1].name / "sequence.md").read_text()
    del result["evaluation"]["tasks"]["mrpc"]
    place.write_text(json.dumps(result))
    with pytest.raises(UserError, match="was not asked mrpc"):
        sequence.report(other / folders[1].name)


def test_interrupted_in_a_later_stage_it_ends_as_if_nothing_had_been(
    watched: tuple[list[Path], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = watched
    shutil.copytree(folders[0], tmp_path / folders[0].name)  # the first stage is finished
    step, calls = loop.train_step, []

    def interrupting(*arguments: Any, **named: Any) -> dict[str, float]:
        calls.append(named["step"])
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path)
    assert not (tmp_path / folders[1].name / "sequence.json").exists()
    again = carry_out(tmp_path)
    assert calls == [1, 2]
    assert (again[1] / ADAPTER).read_bytes() == (folders[1] / ADAPTER).read_bytes()


def test_another_model_at_the_start_is_refused(watched: tuple[list[Path], list[Any]], tmp_path: Path) -> None:
    folders, _ = watched
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    values = load_file(tmp_path / folders[0].name / ADAPTER)
    save_file({n: v + 1 for n, v in values.items()}, tmp_path / folders[0].name / ADAPTER)
    with pytest.raises(UserError, match="began from another model than"):
        carry_out(tmp_path)


def test_a_method_that_cannot_go_on_is_refused_before_a_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learns by an encoder"):
        carry_out(tmp_path, "peft=p_tuning")
    assert not list(tmp_path.iterdir())
    check_resumable_method(config(*SMALL, "peft=prefix_tuning"))


def test_a_plan_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(config("task_sequence=[gsm8k,mrpc,cola]", "mode=plan"))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("stage ")] == [
        "stage 1 of 3: gsm8k",
        "stage 2 of 3: mrpc, after gsm8k",
        "stage 3 of 3: cola, after gsm8k and mrpc",
    ]


@pytest.mark.slow
def test_peft_and_imsm_stand_side_by_side(
    watched: tuple[list[Path], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folders, _ = watched
    mine = carry_out(folders[0].parent, method="imsm")
    gate = [load_file(folder / "model/gate.safetensors") for folder in mine]
    assert any(not value.equal(gate[1][name]) for name, value in gate[0].items())
    shown = capsys.readouterr().out
    assert "imsm less peft" in shown
    records = [json.loads((f / "sequence.json").read_text()) for f in (folders[1], mine[1])]
    assert records[0]["scores"][0] == records[1]["scores"][0]  # one original
    text = (mine[1] / "sequence.md").read_text()
    assert text.index("## peft") < text.index("## imsm")
    assert sequence.main([str(folders[1]), str(mine[1])]) == 0
    assert sequence.main([str(mine[0])]) == 2
    assert "is no later stage of a sequence" in capsys.readouterr().err
