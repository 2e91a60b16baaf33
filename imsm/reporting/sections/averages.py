"""Section: average scores, plasticity and stability."""

from __future__ import annotations

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import format_number, join_names
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData


def build(data: ReportData) -> Section | None:
    """Build the section, or None without a forgetting test."""
    if all(task == data.target for task in data.tasks):
        return None
    points = {point.label: point for point in data.points}
    counted = [task for task in data.tasks if task == data.target or task in data.common]
    records = [
        {
            "run": run.label,
            "retention average": format_number(data.mean(run, data.forgetting)),
            "paper's average": format_number(data.mean(run, counted)),
            **(points[run.label].cells() if points else {}),
        }
        for run in data.runs
    ]
    return Section(
        name="averages",
        title="Averages",
        paragraphs=_paragraphs(data),
        table=Table.from_records(records),
    )  # fmt: skip


def _paragraphs(data: ReportData) -> list[str]:
    trained_on = f" and the tasks marked † ({join_names(sorted(data.trained_on))})" if data.trained_on else ""
    texts = [
        f"The retention average is over the forgetting tests that no compared run was trained on: "
        f"{join_names(data.forgetting)}. The paper's average (its tables 2 and 3) includes the target{trained_on}, "
        "and so mixes learning with retention."
    ]
    if incomplete := [task for task in data.tasks if task not in data.common]:
        texts.append(f"Averages exclude forgetting tests that a run has no score of: {join_names(incomplete)}.")
    if data.points:
        texts.append(
            "Plasticity is the share of PEFT's gain on the target, undefined if the 95 % interval of that gain "
            "includes 0. Stability is the mean retention, a dash if predictions of a forgetting test are missing."
        )
    return texts
