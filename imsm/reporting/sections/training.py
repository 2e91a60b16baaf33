"""Curves of training."""

from __future__ import annotations

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import ReportFigure, Section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    from imsm.reporting.training_log import read_curves

    logs = {arm.label: read_curves(arm.folder) for arm in evidence.arms if arm.result["training"]}
    logs = {label: log for label, log in logs.items() if len(log) > 1}
    if not logs:
        return None
    from imsm.reporting.figures.report import draw_training

    picture = ReportFigure(
        name="training", alt="Loss and gate over the steps of training", draw=lambda: draw_training(logs, evidence)
    )
    return Section(name="training", title="Training", pictures=[picture])
