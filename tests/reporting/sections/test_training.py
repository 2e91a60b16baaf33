"""Training curves."""

from __future__ import annotations

from typing import Any

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.training import build
from tests.reporting.factories import report_data


def test_loss_and_gate_are_drawn(data: ReportData) -> None:
    found = build(data)
    assert found is not None and len(found.figures[0].draw().axes) == 2


def test_a_single_step_is_no_curve(runs: dict[str, Any]) -> None:
    (runs["imsm"][0] / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert build(report_data(runs)[1]) is None
