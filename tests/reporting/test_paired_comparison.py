"""Differences, intervals and retention against the statistics that they are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imsm.evaluation.predictions import write_predictions
from imsm.evaluation.statistics.intervals import paired_difference, proportion_ci
from imsm.evaluation.statistics.significance import mcnemar
from imsm.reporting.paired_comparison import compare_runs, score_interval
from imsm.reporting.report_data import ReportData
from tests.reporting.factories import N, predictions_file, report_data

GROUPS = [number // 2 for number in range(N)]


def test_differences_are_those_of_the_statistics(data: ReportData, shared_runs: dict[str, Any]) -> None:
    assert [run.label for run in data.runs] == ["original", "peft", "imsm"]
    assert len(data.comparisons) == 5 * 3
    for comparison in data.comparisons:
        one, other = (shared_runs[name][2][comparison.task] for name in (comparison.run, comparison.reference))
        expected = paired_difference(100 * one, 100 * other, groups=GROUPS)
        assert comparison.difference.estimate == pytest.approx(expected.estimate)
        if comparison.metric != "mcc":
            found = (comparison.difference.low, comparison.difference.high)
            assert found == pytest.approx((expected.low, expected.high))
        assert comparison.test == mcnemar(one, other)


def test_holm_never_lowers_a_p_value(data: ReportData) -> None:
    for comparison in data.comparisons:
        assert comparison.test is not None and comparison.holm_p_value is not None
        assert comparison.holm_p_value >= comparison.test.p_value


def test_transitions_count_the_forgotten_and_correct_for_chance(data: ReportData, shared_runs: dict[str, Any]) -> None:
    for retention in data.retentions:
        before, after = (shared_runs[name][2][retention.task] for name in ("original", retention.run))
        assert retention.counts.items == N
        assert retention.counts.forgotten == int(((before == 1) & (after == 0)).sum())
        if retention.task == "mrpc":  # every reference is "yes": a constant answer scores 100
            assert retention.chance == 100.0 and retention.retained is None
        if retention.task == "webq":
            assert retention.retained == pytest.approx(100 * after.mean() / before.mean())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_of_equal_scores_is_wilsons(runs: dict[str, Any], share: float) -> None:
    path = predictions_file(runs["original"], "webq")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    sha256 = write_predictions(path.parent, (row | {"scores": dict.fromkeys(row["scores"], share)} for row in rows))
    runs["imsm"][1]["evaluation"]["original"]["webq"]["predictions_sha256"] = sha256
    found, _ = report_data(runs)
    interval = score_interval(found.runs[0], "webq", "contain")
    expected = proportion_ci([share] * N, groups=GROUPS)
    assert interval is not None and interval.estimate == 100 * share
    assert (interval.low, interval.high) == (100 * expected.low, 100 * expected.high)
    assert 10 < interval.high - interval.low < 15


def test_an_unknown_metric_has_no_interval_and_no_comparison(data: ReportData) -> None:
    original, peft, _ = data.runs
    assert score_interval(peft, "webq", "bleu") is None
    assert compare_runs(peft, original, task="webq", metric="bleu") is None
