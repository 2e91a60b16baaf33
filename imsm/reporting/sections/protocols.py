"""All metrics by protocol."""

from __future__ import annotations

from imsm.reporting.render.formatting import number
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    rows = []
    for task in evidence.tasks:
        named = evidence.focus.entry(task).get("protocols", {})
        for protocol, kept_by in named.items():
            for metric in kept_by["metrics"]:
                row = {"task": evidence.name(task), "protocol": protocol, "metric": metric}
                for arm in evidence.arms:
                    scores = arm.entry(task).get("protocols", {}).get(protocol, {})
                    row[arm.label] = number(scores.get("metrics", {}).get(metric))
                rows.append(row)
    lines = [
        "The released code's metrics stand apart: they are shown to compare with its numbers, and "
        "never mixed with the clean ones."
    ]
    return table_section("protocols", "All metrics by protocol", rows, lines, 3, []) if rows else None
