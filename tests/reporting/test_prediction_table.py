"""Predictions of runs, their originals and baselines as tables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest

from imsm.evaluation.result import read_result, write_result
from imsm.reporting.prediction_table import (
    as_table,
    average_over_seeds,
    compare_by_example,
    prediction_table,
    summarize_predictions,
)
from imsm.utils.errors import UserError
from tests.reporting.factories import HOSTILE, TASKS, N, predictions_file, write_run, write_seed


def test_every_method_is_included_once(shared_runs: dict[str, Any]) -> None:
    table = prediction_table([shared_runs["peft"][0], shared_runs["imsm"][0]])
    summary = summarize_predictions(table)
    methods = ["original", "peft", "imsm", "logit mix 0.25", "logit mix 0.75"]
    assert list(dict.fromkeys(summary["method"])) == methods
    assert len(table) == summary["examples"].sum() == len(methods) * N * len(TASKS)
    row = summary[(summary["method"] == "imsm") & (summary["task"] == "mrpc")].squeeze()
    assert row["score"] == pytest.approx(100 * shared_runs["imsm"][2]["mrpc"].mean())
    assert (row["unparsed"], row["truncated"], row["tokens"], row["reference_loglik"]) == (0, 0, 2, -1.5)
    assert summary[summary["method"] == "original"]["seed"].isna().all()
    assert summary[summary["method"] == "peft"]["gate_mean"].isna().all()
    assert summary[summary["method"] == "imsm"]["gate_mean"].between(0, 1).all()


def test_originals_on_different_test_sets_are_separate(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    original_folder, original, _ = runs["original"]
    write_run(original_folder, original, 50, others=["webq"])
    write_run(folder, record, 51, others=["webq"])
    record["evaluation"]["original"] = original["evaluation"]["tasks"]
    write_result(folder, record)
    for order in ([folder, runs["imsm"][0]], [runs["imsm"][0], folder]):
        summary = summarize_predictions(prediction_table(order))
        tasks = list(summary[summary["method"] == "original"]["task"])
        assert tasks.count("webq") == 2 and tasks.count("mrpc") == 1


def test_seeds_are_averaged_within_a_configuration(runs: dict[str, Any]) -> None:
    folders = [runs["peft"][0], write_seed(runs, "peft", seed=1)]
    predictions = prediction_table(folders)
    summary = summarize_predictions(predictions)
    means = average_over_seeds(predictions)
    trained = means[means["method"] == "peft"]
    assert set(trained["seeds"]) == {2} and set(trained["run"]) == {folders[0].name}
    assert set(means[means["method"] == "original"]["seeds"]) == {1}
    for row in means.itertuples():
        scores = summary[(summary["method"] == row.method) & (summary["task"] == row.task)]["score"]
        assert (row.score, row.lowest, row.highest) == (scores.mean(), scores.min(), scores.max())
        assert row.ci_low < row.score < row.ci_high
    other = write_seed(runs, "peft", "trainer.learning_rate=0.02", seed=3)
    means = average_over_seeds(prediction_table([*folders, other]))
    trained = means[means["method"] == "peft"]
    assert sorted(set(zip(trained["run"], trained["seeds"], strict=True))) == sorted(
        [(folders[0].name, 2), (other.name, 1)]
    )


def test_an_example_has_its_prompt_accepted_answers_and_the_responses_of_all_runs(runs: dict[str, Any]) -> None:
    peft, imsm = runs["peft"][0], runs["imsm"][0]
    table = compare_by_example(prediction_table([peft, imsm]))
    assert len(table) == N * len(TASKS) and not table.isna().any(axis=None)
    row = table[table["id"] == "webq/3"].squeeze()
    assert row["prompt"].startswith("Question 3:") and row["references"] == "paris"
    for method in ("peft", "imsm"):
        assert row[f"{method}: response"] == HOSTILE
        assert row[f"{method}: score"] == runs[method][2]["webq"][3]
    seed = write_seed(runs, "peft", seed=1)
    columns = set(compare_by_example(prediction_table([peft, seed])).columns)
    assert {f"peft ({folder.name}): answer" for folder in (peft, seed)} | {"original: answer"} <= columns


def test_damaged_predictions_are_named(runs: dict[str, Any]) -> None:
    path = predictions_file(runs["peft"], "webq")
    path.write_text('{"id": 1')
    with pytest.raises(UserError, match="mode=evaluate") as raised:
        prediction_table([runs["peft"][0]])
    assert str(path) in str(raised.value)


def test_a_changed_original_or_baseline_is_named_and_left_out(
    runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is asked for is an error instead."""
    folder = runs["imsm"][0]
    baselines = sorted((folder / "baselines").iterdir())
    edited = [
        predictions_file(runs["original"], "webq"),
        next(baselines[0].glob("evaluation/mrpc-*")) / "predictions.jsonl",
        baselines[1] / "result.json",
    ]
    complete = prediction_table([folder])
    for path in edited:
        path.write_text(path.read_text().replace("0.0", "1.0", 1))
    table = prediction_table([folder])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("left out: ") for line in lines)
    assert {str(path) for path in edited} == {str(path) for path in edited if any(str(path) in line for line in lines)}
    left = {(method, task) for method, task in zip(table["method"], table["task"], strict=True)}
    before = {(method, task) for method, task in zip(complete["method"], complete["task"], strict=True)}
    expected = {("original", "webq"), ("logit mix 0.25", "mrpc")} | {
        (m, t) for m, t in before if m == "logit mix 0.75"
    }
    assert before - left == expected


def test_the_original_of_a_run_in_a_custom_folder_is_in_the_runs_root(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "custom" / "a[b]"
    shutil.copytree(runs["peft"][0], folder)
    monkeypatch.setenv("IMSM_RUNS", str(runs["root"]))
    summary = summarize_predictions(prediction_table([folder]))
    assert list(dict.fromkeys(summary["run"])) == [runs["original"][0].name, "a[b]"]
    assert read_result(folder)["name"] == runs["peft"][1]["name"]


def test_cells_are_rounded_and_missing_values_empty() -> None:
    frame = pandas.DataFrame({"run": ["r"], "metric": ["f1"], "examples": [3], "score": [12.34], "gate_mean": [None]})
    table = as_table(frame)
    assert table.rows == [["r", "f1", "3", "12.3", ""]] and table.text_columns == 2
