"""The sentences at the top of a report."""

from __future__ import annotations

from typing import Any

from imsm.reporting.report import build_report
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.sections.headline import build_headline
from tests.reporting.factories import cell, data_of, section, three_results


def test_the_result_is_stated_with_its_difference_and_the_retention_of_both(data: ReportData) -> None:
    learned, retained, chance, *_ = build_headline(data)
    before, after = (cell(section(data, "overview"), run, task="gsm8k (target)") for run in ("original", "imsm"))
    assert f"{before} → {after} points" in learned and learned.endswith("to peft.")
    assert "webq, freebaseqa" in retained and cell(section(data, "averages"), "stability", run="imsm") in retained
    assert chance == "The original is at chance on multirc and mrpc."


def test_without_predictions_the_retention_average_stands_for_stability() -> None:
    assert build_headline(data_of(three_results()))[-1].startswith("Retention average over ")


def test_a_report_opens_with_a_readable_name(shared_runs: dict[str, Any]) -> None:
    folder, record, _ = shared_runs["imsm"]
    report = build_report(folder, record, runs_root=shared_runs["root"])
    assert (report.title, report.run) == ("IMSM with lora on gsm8k", record["name"])
    folder, record, _ = shared_runs["original"]
    report = build_report(folder, record, runs_root=shared_runs["root"])
    assert report.title == "mini before training" and report.headline[0].startswith("Scores in points: ")


def test_a_baseline_that_is_as_good_is_in_the_headline(data: ReportData) -> None:
    assert data.matches == {} or "Training-free baselines match it" in build_headline(data)[-1]
    alone = build_report_data(data.runs)
    assert alone.matches == {} and not any("Training-free" in text for text in build_headline(alone))
