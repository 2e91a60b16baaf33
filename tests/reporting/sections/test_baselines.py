"""Training-free baselines."""

from __future__ import annotations

from typing import Any

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.baselines import build
from tests.reporting.factories import cell, data_of, evaluate_on_other_examples, report_data, section, three_results


def test_baselines_are_listed_after_the_runs(data: ReportData) -> None:
    table = section(data, "baselines").table
    assert table is not None
    assert table.column("run") == ["original", "peft", "imsm", "logit mix 0.25", "logit mix 0.75"]


def test_scores_of_other_examples_are_dashes(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq", "multirc"])
    found = section(report_data(runs)[1], "baselines")
    for run in ("peft", "logit mix 0.25", "logit mix 0.75"):
        assert cell(found, "webq", run=run) == cell(found, "multirc", run=run) == "–"
        assert cell(found, "freebaseqa", run=run) != "–"


def test_without_baselines_there_is_no_section() -> None:
    assert build(data_of(three_results())) is None
