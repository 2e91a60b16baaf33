"""Section: training curves."""

from __future__ import annotations

from imsm.reporting.figures.report import draw_training
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.report_data import ReportData
from imsm.reporting.training_log import read_training_log


def build(data: ReportData) -> Section | None:
    """Build the section, or None without a log of two or more steps."""
    logs = {run.label: read_training_log(run.folder) for run in data.runs if run.result["training"]}
    logs = {label: log for label, log in logs.items() if len(log) > 1}
    if not logs:
        return None
    figure = ReportFigure(
        name="training", alt="Loss and gate mean over training steps", draw=lambda: draw_training(logs, data)
    )
    return Section(name="training", title="Training", figures=[figure])
