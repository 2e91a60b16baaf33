"""Scores with their intervals."""

from __future__ import annotations

from imsm.reporting.paired_comparison import total_of
from imsm.reporting.render.formatting import interval
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import ReportFigure, Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    rows = []
    for task in evidence.tasks:
        metric = evidence.metrics[task]
        row = {"task": evidence.name(task), "metric": metric}
        for arm in evidence.arms:
            found = total_of(arm, task, metric)
            row[arm.label] = "–" if found is None else interval(found[1])
        rows.append(row)
    if not any(value != "–" for row in rows for value in list(row.values())[2:]):
        return None
    from imsm.reporting.figures.report import draw_scores

    picture = ReportFigure(
        name="scores", alt="Scores of all arms per task with their 95 % intervals", draw=lambda: draw_scores(evidence)
    )
    lines = [
        "In points, with 95 % intervals: a bootstrap over items, whole passages where items share "
        "one. They say how other items would come out, not how another training would. Where all "
        "answers are right, or all wrong, a bootstrap has no width: there it is Wilson's interval."
    ]
    return table_section("scores", "Scores and their intervals", rows, lines, 2, [picture])
