"""Section: examples retained, forgotten, learned and never known."""

from __future__ import annotations

from imsm.reporting.figures.report import draw_transitions
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import format_number, format_percent
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData

_TEXT = (
    "Of the examples that the original answers correctly, a run retains some and forgets the others. Of those that it "
    "answers wrongly, a run learns some; the others were never known. Retention is 100 (s − c)/(b − c) %, where s is "
    "the run's score, b the original's and c the chance level. It is undefined unless the original is above chance by "
    "two standard errors."
)


def build(data: ReportData) -> Section | None:
    """Build the section, or None without predictions."""
    if not data.retentions:
        return None
    records = [
        {
            "task": data.name(found.task),
            "run": found.run,
            "retained": str(found.counts.kept),
            "forgotten": str(found.counts.forgotten),
            "learned": str(found.counts.learned),
            "never known": str(found.counts.never_known),
            "chance": format_number(found.chance),
            "retention": "target" if found.task == data.target else format_percent(found.retained),
        }
        for found in data.retentions
    ]
    figure = ReportFigure(
        name="transitions",
        alt="Shares of examples retained, forgotten, learned and never known, by task and run",
        draw=lambda: draw_transitions(data),
    )
    return Section(
        name="transitions",
        title="Retained, forgotten, learned",
        paragraphs=[_TEXT],
        table=Table.from_records(records, text_columns=2),
        figures=[figure],
    )
