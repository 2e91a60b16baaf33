"""Section: scores over seeds, with the paper's t-test."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from imsm.evaluation.statistics.significance import TTest, student_t
from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import MISSING, format_number, format_p_value
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun


def build(data: ReportData) -> Section | None:
    """Build the section, or None if every run has one seed."""
    records = [
        _record(data, run, task) for run in data.runs if len(data.seeds.get(run.label, {})) > 1 for task in data.tasks
    ]
    if not records:
        return None
    return Section(
        name="seeds",
        title="Seeds",
        paragraphs=["Runs that differ only in the seed. Student's t-test over seeds is the test of the paper."],
        table=Table.from_records(records, text_columns=2),
    )


def _record(data: ReportData, run: ComparedRun, task: str) -> dict[str, str]:
    scores = _scores(data.seeds[run.label], task, data.metrics[task])
    test = _test_against_peft(data, run, task, scores)
    return {
        "task": data.name(task),
        "run": run.label,
        "seeds": str(len(scores)),
        "mean": format_number(fmean(scores) if scores else None),
        "lowest": format_number(min(scores, default=None)),
        "highest": format_number(max(scores, default=None)),
        "t, versus PEFT": MISSING if test is None or test.t is None else f"{test.t:+.2f}",
        "p, Student": MISSING if test is None or test.t is None else format_p_value(test.p_value),
    }


def _test_against_peft(data: ReportData, run: ComparedRun, task: str, scores: list[float]) -> TTest | None:
    peft = next((other for other in data.runs if other.method == "peft"), None)
    if peft is None or run is peft:
        return None
    others = _scores(data.seeds.get(peft.label, {}), task, data.metrics[task])
    return student_t(scores, others) if scores and others else None


def _scores(results: Mapping[int, Mapping[str, Any]], task: str, metric: str) -> list[float]:
    """Return the scores, ordered by seed."""
    entries = [result["evaluation"]["tasks"].get(task, {}) for _, result in sorted(results.items())]
    values = [entry.get("metrics", {}).get(metric) for entry in entries]
    return [float(value) for value in values if value is not None]
