"""Section: all metrics of both protocols."""

from __future__ import annotations

from imsm.reporting.render.document import Section
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.reporting.sections.overview import score_cells, score_columns

_TEXT = (
    "Scores in points, with differences. Metrics of the protocol paper_code are comparable with the published "
    "numbers and are never mixed with strict ones."
)


def build(data: ReportData) -> Section | None:
    """Build the section, or None without metrics."""
    rows = []
    for task in data.tasks:
        for protocol, metrics in _metrics(data.focus, task).items():
            for metric in metrics:

                def score(
                    run: ComparedRun, task: str = task, protocol: str = protocol, metric: str = metric
                ) -> float | None:
                    return _metrics(run, task).get(protocol, {}).get(metric)

                rows.append([data.name(task), protocol, metric, *score_cells(data, score)])
    if not rows:
        return None
    columns = ["task", "protocol", "metric", *score_columns(data)]
    return Section(
        name="protocols",
        title="All metrics by protocol",
        paragraphs=[_TEXT],
        table=Table(columns=columns, rows=rows, text_columns=3),
    )


def _metrics(run: ComparedRun, task: str) -> dict[str, dict[str, float]]:
    """Return a task's metrics by protocol."""
    entry = run.task_result(task)
    found = {protocol: result["metrics"] for protocol, result in entry.get("protocols", {}).items()}
    return found or {entry.get("protocol", "strict"): entry.get("metrics", {})}
