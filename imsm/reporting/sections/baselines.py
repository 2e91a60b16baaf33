"""Section: training-free baselines."""

from __future__ import annotations

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData

_TEXT = (
    "What both streams, or the adapter alone, achieve without a trained gate. The oracle router is given the task "
    "and retains everything by construction: it is an upper bound, not a method."
)


def build(data: ReportData) -> Section | None:
    """Build the section, or None without baselines."""
    if not data.baselines:
        return None
    points = {point.label: point for point in data.points}
    records = []
    for run in [*data.runs, *data.baselines]:
        record = {"run": run.label}
        record |= {data.name(task): format_number(data.mean(run, [task])) for task in data.tasks}
        record["retention average"] = format_number(data.mean(run, data.forgetting))
        if run.label in points:
            cells = points[run.label].cells()
            record |= {name: cells[name] for name in ("plasticity", "stability")}
        records.append(record)
    table = Table.from_records(records)
    target = [] if data.target is None else [data.name(data.target)]
    return Section(
        name="baselines",
        title="Training-free baselines",
        paragraphs=[_TEXT],
        table=table,
        terminal_table=table.select(["run", *target, "retention average", *(["stability"] if points else [])]),
    )
