"""Averages, learning versus forgetting, and training-free baselines."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.runs import runs_to_compare
from imsm.reporting.sections.tradeoff import build_baselines, retention_on_curve
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint
from tests.reporting.factories import cell, data_of, evaluate_on_other_examples, report_data, section, three_results


def test_a_test_that_was_trained_on_is_in_no_retention_average(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["tasks"]["webq"]["trained_on"] = True
    data = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    own = 100 * runs["imsm"][2]["freebaseqa"].mean()  # the original is at chance on multirc and mrpc
    assert cell(section(data, "averages"), "retention average", run="imsm") == f"{own:.1f}"


def test_other_examples_are_in_no_average(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq", "multirc"])
    _, data = report_data(runs)
    averages, overview = section(data, "averages"), section(data, "overview")
    for run in ("original", "peft", "imsm"):
        assert cell(averages, "retention average", run=run) == cell(overview, run, task="freebaseqa")
    assert cell(averages, "paper's average", run="peft") != "–"
    assert "webq, multirc" in averages.paragraphs[1]


def test_without_the_target_plasticity_is_a_dash(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["gsm8k"])
    averages = section(report_data(runs)[1], "averages")
    assert cell(averages, "paper's average", run="peft") == cell(averages, "plasticity", run="peft") == "–"


def test_the_hypervolume_is_not_bounded_by_one(data: ReportData) -> None:
    (line,) = [line for line in section(data, "tradeoff").notes if "hypervolume" in line]
    assert "values above 1 are possible" in line


def test_without_curves_the_command_is_named(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["gsm8k"])
    _, data = report_data(runs)
    assert data.curves == []
    (point,) = [point for point in data.points if point.label == "logit mix 0.25"]
    assert point.target is None and not point.has_position
    found = section(data, "tradeoff")
    assert "imsm baselines RUN" in found.notes[-1]
    assert found.figures[0].draw().axes


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (70.0, "retains 70.0 %"),  # half way from (60, 100) to (80, 40)
        (59.0, "scores higher at every point and retains up to 100.0 %"),
        (81.0, "does not reach it"),
    ],
)
def test_retention_at_a_target_score(target: float, text: str) -> None:
    def point(score: float, stability: float) -> TradeoffPoint:
        names: dict[str, Any] = {"label": "x", "method": "baseline", "baseline": "x", "value": 0.5}
        return TradeoffPoint(**names, target=score, plasticity=None, stability=stability)

    curve = TradeoffCurve(baseline="logit_mix", symbol="λ", points=[point(80, 40), point(60, 100)])
    assert retention_on_curve(curve, target) == text


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
    assert build_baselines(data_of(three_results())) is None


def test_matching_baselines_are_named_beside_the_table_until_none_matches(runs: dict[str, Any]) -> None:
    _, data = report_data(runs)
    for matches in ({}, {"imsm": ["logit mix"]}):
        data.__dict__["matches"] = matches
        found = build_baselines(data)
        assert found is not None and [("match imsm" in note) for note in found.notes] == [True] * len(matches)


def test_tests_at_chance_are_named_and_in_no_average(data: ReportData) -> None:
    assert data.at_chance == ["multirc", "mrpc"] and data.informative == ["webq", "freebaseqa"]
    averages, overview = section(data, "averages"), section(data, "overview")
    assert any("chance: webq, freebaseqa." in text for text in averages.paragraphs)
    assert any("at chance on multirc and mrpc" in note for note in overview.notes)
