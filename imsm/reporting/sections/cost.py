"""Section: parameters, time and memory."""

from __future__ import annotations

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun
from imsm.utils.formatting import format_bytes, format_duration


def build(data: ReportData) -> Section | None:
    """Build the section."""
    table = Table.from_records([_record(run) for run in data.runs])
    return Section(
        name="cost",
        title="Cost",
        paragraphs=["Trainable parameters, training and evaluation time, and peak memory of training."],
        table=table,
        terminal_table=table,
    )


def _record(run: ComparedRun) -> dict[str, str]:
    training = run.result["training"] or {}
    entries = run.result["evaluation"]["tasks"].values()
    seconds = sum(entry["seconds"] for entry in entries)
    tokens = sum(entry["new_tokens"] for entry in entries)
    return {
        "run": run.label,
        "adapter": f"{run.result['trainable_parameters']['adapter']:,}",
        "gate": f"{run.result['trainable_parameters']['gate']:,}",
        "training": format_duration(training.get("seconds")),
        "tokens/s": _rate(training.get("tokens_per_second")),
        "memory": format_bytes(training.get("peak_memory_bytes")),
        "evaluation": format_duration(seconds),
        "eval tok/s": _rate(tokens / seconds if seconds else None),
    }


def _rate(tokens_per_second: float | None) -> str:
    return format_number(None) if tokens_per_second is None else f"{tokens_per_second:,.0f}"
