"""Headline scores, differences, intervals and all metrics."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.reporting.render.formatting import format_interval
from imsm.reporting.report_data import ReportData
from tests.helpers.config import result
from tests.reporting.factories import cell, data_of, evaluate_on_other_examples, report_data, section, three_results


def test_differences_are_to_the_original_and_to_peft() -> None:
    found = section(data_of(three_results()), "overview")
    assert found.table is not None
    assert found.table.columns == [
        "task", "metric", "examples", "original", "peft", "imsm",
        "peft − original", "imsm − original", "imsm − peft",
    ]  # fmt: skip
    assert found.table.rows[0] == [
        "gsm8k (target)", "gsm8k_accuracy", "200", "50.0", "42.3", "47.8", "−7.7", "−2.2", "+5.5"
    ]  # fmt: skip


def test_the_average_excludes_the_target() -> None:
    results = three_results()
    for record, values in zip(results, [(10, 20, 30, 40), (2, 4, 6, 8), (1, 1, 1, 5)], strict=True):
        tasks = record["evaluation"]["tasks"]
        for name, value in zip(("webq", "freebaseqa", "multirc", "mrpc"), values, strict=True):
            tasks[name]["metrics"][tasks[name]["headline"]] = float(value)
    found = section(data_of(results), "overview")
    assert [cell(found, run, task="average") for run in ("original", "peft", "imsm")] == ["25.0", "5.0", "2.0"]
    assert cell(found, "imsm − peft", task="average") == "−3.0"


def test_a_test_that_was_trained_on_is_marked_and_not_averaged() -> None:
    found = section(data_of(three_results("data=mrpc")), "overview")
    assert cell(found, "metric", task="average") == "3 forgetting tests"
    assert cell(found, "imsm", task="mrpc (target) †") == "47.8"
    assert any(note.startswith("† mrpc") for note in found.notes)
    other = section(data_of(three_results("data=cola")), "overview")
    assert other.table is not None and not any("†" in row[0] for row in other.table.rows)


def test_every_learned_task_of_a_sequence_is_marked() -> None:
    results = three_results("data=ropes", "evaluation.tasks=[mrpc,ropes,webq]")
    for record in results[1:]:
        record["evaluation"]["tasks"]["mrpc"]["trained_on"] = True
    notes = [note for note in section(data_of(results), "overview").notes if note.startswith("†")]
    assert [note.split(":")[0] for note in notes] == ["† ropes", "† mrpc"]


def test_a_missing_score_has_no_difference_and_no_average() -> None:
    results = [result("original", points=50.0), result("imsm", points=40.0)]
    results[0]["evaluation"]["tasks"] = {}
    found = section(data_of(results), "overview")
    assert cell(found, "original", task="gsm8k (target)") == cell(found, "imsm − original", task="webq") == "–"
    assert found.table is not None and all(row[0] != "average" for row in found.table.rows)
    assert any("other examples" in note for note in found.notes)


def test_the_original_alone_has_no_differences() -> None:
    found = section(data_of([result("original")]), "overview")
    assert found.table is not None and found.terminal_table is not None
    assert not any("−" in name for name in found.table.columns)
    assert found.terminal_table.columns == ["task", "metric", "run", "points"]
    assert found.terminal_table.rows[0][1] == "gsm8k_accuracy, 200 examples"


@pytest.mark.parametrize(("count", "ids", "rest"), [(2, ["a", "b"], "a, b."), (5, ["a", "b"], "a, b and 3 more.")])
def test_contamination_is_reported(count: int, ids: list[str], rest: str) -> None:
    results = three_results()
    results[-1]["evaluation"]["tasks"]["gsm8k"]["contamination"] = {"count": count, "ids": ids}
    (note,) = [note for note in section(data_of(results), "overview").notes if "gsm8k" in note]
    assert note.startswith(f"{count} test examples of gsm8k") and note.endswith(rest)


def test_gates_that_differ_in_one_key_keep_their_own_differences() -> None:
    original, peft, mean = three_results()
    other = result("imsm", "gate.pooling=max", points=30.0)
    found = section(data_of([original, peft, other, mean]), "overview")
    assert found.table is not None
    assert found.table.columns[5:7] == ["imsm (query r8 pooling=max)", "imsm (query r8 pooling=mean)"]
    assert found.table.rows[0][3:] == ["50.0", "42.3", "30.0", "47.8", "−7.7", "−20.0", "−2.2", "−12.3", "+5.5"]


def test_cells_are_the_intervals_of_the_data(data: ReportData) -> None:
    found, interval = section(data, "scores"), data.score_intervals["webq", "imsm"]
    assert cell(found, "imsm", task="webq") == format_interval(interval.estimate, interval.low, interval.high)
    assert "Wilson" in found.paragraphs[0]


def test_intervals_of_other_examples_are_dashes(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    found = section(report_data(runs)[1], "scores")
    assert cell(found, "peft", task="webq") == "–" and cell(found, "imsm", task="webq") != "–"


def test_every_metric_has_scores_and_differences() -> None:
    found = section(data_of(three_results()), "protocols")
    assert cell(found, "imsm − peft", task="webq", metric="exact_match") == "+5.5"
    assert cell(found, "protocol", task="webq", metric="exact_match") == "strict"


def test_protocols_have_rows_of_their_own() -> None:
    results = three_results()
    for record in results:
        entry = record["evaluation"]["tasks"]["webq"]
        entry["protocols"] = {"strict": {"metrics": entry["metrics"]}, "paper_code": {"metrics": {"paper_code": 9.0}}}
    found = section(data_of(results), "protocols")
    assert cell(found, "imsm", task="webq", protocol="paper_code") == "9.0"


def test_metrics_of_other_examples_are_dashes(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    found = section(report_data(runs)[1], "protocols")
    assert cell(found, "peft", task="webq", metric="contain") == "–"
    assert cell(found, "imsm", task="webq", metric="contain") != "–"
