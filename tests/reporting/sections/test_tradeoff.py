"""Learning versus forgetting in words."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.tradeoff import retention_on_curve
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint
from tests.reporting.factories import evaluate_on_other_examples, report_data, section


def test_the_hypervolume_is_not_bounded_by_one(data: ReportData) -> None:
    (line,) = [line for line in section(data, "tradeoff").paragraphs if "hypervolume" in line]
    assert "values above 1 are possible" in line


def test_without_curves_the_command_is_named(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["gsm8k"])
    _, data = report_data(runs)
    assert data.curves == []
    (point,) = [point for point in data.points if point.label == "logit mix 0.25"]
    assert point.target is None and not point.has_position
    found = section(data, "tradeoff")
    assert "imsm baselines RUN" in found.paragraphs[-1]
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
