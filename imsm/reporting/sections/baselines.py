"""Controls without training beside the arms."""

from __future__ import annotations

from imsm.reporting.render.formatting import number
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    if not evidence.controls:
        return None
    places = {trade.label: trade for trade in evidence.trades}
    rows = []
    for arm in [*evidence.arms, *evidence.controls]:
        row = {"arm": arm.label}
        for task in evidence.tasks:
            value = arm.entry(task).get("metrics", {}).get(evidence.metrics[task])
            row[evidence.name(task)] = number(value)
        row["retention average"] = number(evidence.mean(arm, evidence.forgetting))
        if arm.label in places:
            cells = places[arm.label].cells()
            row |= {name: cells[name] for name in ("plasticity", "stability")}
        rows.append(row)
    lines = [
        "What two streams, or one adapter, give without a trained gate. A router that asks which "
        "task it is (oracle) keeps everything by construction: it is a bound, no method."
    ]
    found = table_section("controls", "Controls without training", rows, lines, 1, [])
    if found is not None:
        target = [] if evidence.target is None else [evidence.name(evidence.target)]
        found.terminal_columns = ["arm", *target, "retention average"] + ["stability"] * bool(places)
    return found
