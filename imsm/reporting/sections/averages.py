"""The retention average and the paper's, plasticity and stability."""

from __future__ import annotations

from imsm.reporting.render.formatting import listed, number
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    places = {trade.label: trade for trade in evidence.trades}
    shown = [each for each in evidence.tasks if each != evidence.target]
    if not shown:
        return None
    counted = [t for t in evidence.tasks if t == evidence.target or t in evidence.common]
    rows = []
    for arm in evidence.arms:
        row = {
            "arm": arm.label,
            "retention average": number(evidence.mean(arm, evidence.forgetting)),
            "the paper's average": number(evidence.mean(arm, counted)),
        }
        if places:
            row |= places[arm.label].cells()
        rows.append(row)
    lines = [
        f"The retention average is over {listed(evidence.forgetting)}: forgetting tests that no "
        "arm was trained on. The paper's average (its tables 2 and 3) counts the target too"
        + (f", and {listed(sorted(evidence.marked))}, marked here" if evidence.marked else "")
        + ": it mixes what was learned with what was kept."
    ]
    if absent := [task for task in evidence.tasks if task not in evidence.common]:
        lines.append(
            f"Not every arm has a score of {listed(absent)}: no average of forgetting tests counts "
            "what one of them lacks."
        )
    if places:
        lines.append(
            "Plasticity: the share of PEFT's gain on the target, undefined where that gain's 95 % "
            "interval holds 0; stability: the mean retention, a dash where the items of a test are "
            "not whole."
        )
    return table_section("averages", "Averages", rows, lines, 1, [])
