"""Scores with intervals."""

from __future__ import annotations

from typing import Any

from imsm.reporting.render.formatting import format_interval
from imsm.reporting.report_data import ReportData
from tests.reporting.factories import cell, evaluate_on_other_examples, report_data, section


def test_cells_are_the_intervals_of_the_data(data: ReportData) -> None:
    found, interval = section(data, "scores"), data.score_intervals["webq", "imsm"]
    assert cell(found, "imsm", task="webq") == format_interval(interval.estimate, interval.low, interval.high)
    assert "Wilson" in found.paragraphs[0]


def test_scores_of_other_examples_are_dashes(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    found = section(report_data(runs)[1], "scores")
    assert cell(found, "peft", task="webq") == "–" and cell(found, "imsm", task="webq") != "–"
