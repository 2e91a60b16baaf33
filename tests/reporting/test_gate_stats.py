"""Statistics of the gate, and what limits their interpretation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from imsm.reporting.gate_stats import gate_by_position, gate_table, gate_warnings
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun


def run_with(gates: list[list[float]], scores: list[float]) -> ComparedRun:
    table = pandas.DataFrame(
        {"gate_mean": [sum(g) / len(g) for g in gates], "gate_per_token": gates, "score.accuracy": scores}
    )
    run = ComparedRun(label="imsm", result={"method": "imsm", "evaluation": {"tasks": {"task": {}}}}, folder=Path())
    run._predictions["task"] = table
    return run


def test_the_table_separates_correct_and_wrong_answers(data: ReportData) -> None:
    table = gate_table(data.focus, data.tasks, metrics=data.metrics)
    assert list(table["task"]) == data.tasks
    assert set(table["correct"].round(6)) == {0.5} and set(table["wrong"].round(6)) == {0.4}
    assert set(table["AUC"]) == {1.0}
    assert gate_table(data.runs[0], data.tasks, metrics=data.metrics).empty


def test_positions_end_where_few_responses_reach() -> None:
    gates = [[0.1, 0.2]] * 3 + [[0.4]]
    assert gate_by_position(run_with(gates, [1, 1, 1, 0]), "task") == pytest.approx([0.175, 0.2])
    assert gate_by_position(run_with([[0.1], [0.3, 0.9]], [1, 0]), "task") == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("gate", "start", "expected"),
    [(0.5, None, []), (0.5, 0.9, []), (0.5, 0.51, ["close to its value"]), (0.999, 0.5, ["saturated on 100 %"])],
)
def test_warnings(gate: float, start: float | None, expected: list[str]) -> None:
    found = gate_warnings(run_with([[gate]] * 4, [1, 0, 1, 0]), ["task"], start=start)
    assert len(found) == len(expected) and all(part in line for part, line in zip(expected, found, strict=True))


def test_without_predictions_there_is_no_warning(tmp_path: Path) -> None:
    result: dict[str, Any] = json.loads('{"method": "imsm", "evaluation": {"tasks": {}}}')
    assert gate_warnings(ComparedRun(label="imsm", result=result, folder=tmp_path), ["webq"], start=0.5) == []
