"""Averages, plasticity and stability."""

from __future__ import annotations

from typing import Any

from imsm.reporting.report_data import build_report_data
from imsm.reporting.runs import runs_to_compare
from tests.reporting.factories import cell, evaluate_on_other_examples, report_data, section


def test_a_test_that_was_trained_on_is_in_no_retention_average(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["tasks"]["webq"]["trained_on"] = True
    data = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    own = [100 * runs["imsm"][2][task].mean() for task in ("freebaseqa", "multirc", "mrpc")]
    assert cell(section(data, "averages"), "retention average", run="imsm") == f"{sum(own) / 3:.1f}"


def test_other_examples_are_in_no_average(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq", "multirc"])
    _, data = report_data(runs)
    averages, overview = section(data, "averages"), section(data, "overview")
    for run in ("original", "peft", "imsm"):
        assert cell(averages, "retention average", run=run) == cell(overview, run, task="average")
    assert cell(averages, "paper's average", run="peft") != "–"
    assert "webq, multirc" in averages.paragraphs[1]


def test_without_the_target_plasticity_is_a_dash(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["gsm8k"])
    averages = section(report_data(runs)[1], "averages")
    assert cell(averages, "paper's average", run="peft") == cell(averages, "plasticity", run="peft") == "–"
