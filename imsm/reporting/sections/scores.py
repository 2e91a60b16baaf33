"""Section: headline scores with 95 % intervals."""

from __future__ import annotations

from imsm.evaluation.statistics.intervals import Interval
from imsm.reporting.figures.report import draw_scores
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import MISSING, format_interval
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData

_TEXT = (
    "Scores in points with 95 % bootstrap intervals over examples, resampled by passage where examples share one. "
    "The intervals cover the choice of examples, not of the training seed. If all answers are correct or all are "
    "wrong, a bootstrap interval has zero width, and Wilson's interval is shown."
)


def build(data: ReportData) -> Section | None:
    """Build the section, or None without predictions."""
    if not data.score_intervals:
        return None
    records = [
        {
            "task": data.name(task),
            "metric": data.metrics[task],
            **{run.label: _cell(data.score_intervals.get((task, run.label))) for run in data.runs},
        }
        for task in data.tasks
    ]
    figure = ReportFigure(
        name="scores", alt="Scores of all runs by task with 95 % intervals", draw=lambda: draw_scores(data)
    )
    return Section(
        name="scores",
        title="Scores with confidence intervals",
        paragraphs=[_TEXT],
        table=Table.from_records(records, text_columns=2),
        figures=[figure],
    )


def _cell(interval: Interval | None) -> str:
    return MISSING if interval is None else format_interval(interval.estimate, interval.low, interval.high)
