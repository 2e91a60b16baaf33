"""The gate's table, figure and heatmaps."""

from __future__ import annotations

from typing import Any

from imsm.evaluation.result import write_result
from imsm.reporting.report_data import ReportData
from tests.helpers.config import result
from tests.reporting.factories import HOSTILE, report_data, section, write_run


def test_a_correct_and_a_wrong_response_are_shaded(data: ReportData) -> None:
    heatmaps = section(data, "gate").heatmaps
    assert len(heatmaps) == 2 * len(data.tasks)
    assert {heatmap.title.rsplit(", ", 1)[1] for heatmap in heatmaps} == {"correct", "wrong"}
    assert heatmaps[0].pieces == [HOSTILE, "\n"]


def test_a_heat_map_shows_the_question_the_accepted_answers_and_the_other_runs(data: ReportData) -> None:
    found = section(data, "gate").heatmaps[0]
    number = found.title.split("/")[1].split(",")[0]
    assert found.prompt == f"Question {number}: {HOSTILE}" and found.references == "paris"
    assert [label.split(",")[0] for label, _ in found.others] == ["original", "peft"]
    assert {text for _, text in found.others} == {HOSTILE}


def test_a_second_gate_without_a_task_has_its_rows_and_panels(runs: dict[str, Any]) -> None:
    record = result("imsm", "gate=no_query")
    folder = runs["root"] / "no_query"
    write_run(folder, record, 40, others=("webq",))
    write_result(folder, record)
    found = section(report_data(runs)[1], "gate")
    assert found.table is not None and len(found.table.rows) == 5 + 4
    assert len(found.figures[0].draw().axes) == 2 * 3
