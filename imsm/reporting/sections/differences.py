"""Arms against each other, item by item."""

from __future__ import annotations

from imsm.reporting.paired_comparison import PairedComparison
from imsm.reporting.render.formatting import interval, number, p_value
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import ReportFigure, Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    if not evidence.contrasts:
        return None
    family = sum(each.adjusted is not None for each in evidence.contrasts)
    rows = [
        {
            "task": evidence.name(each.task),
            "arm − reference": f"{each.arm} − {each.reference}",
            "difference": interval(each.difference, signed=True),
            "better : worse": _ratio(each),
            "p, McNemar": p_value(each.test.p_value if each.test else None),
            "p, Holm": p_value(each.adjusted),
            "detectable": number(each.minimum_detectable),
        }
        for each in evidence.contrasts
    ]
    from imsm.reporting.figures.report import draw_differences

    picture = ReportFigure(
        name="differences",
        alt="Differences of arms to their references per task with 95 % intervals",
        draw=lambda: draw_differences(evidence),
    )
    lines = [
        "Both arms on the same items, paired: difference in points with its 95 % interval "
        "(bootstrap, clustered by passage); items that one arm alone got right; McNemar's exact p, "
        f"and Holm's over the family of {family} tests on this card (every task and reference "
        "with right or wrong answers, marked cells left out). Detectable: the least difference "
        "that so many items show with a power of 80 %."
    ]
    found = table_section("differences", "Differences", rows, lines, 2, [picture])
    if found is not None:
        found.terminal_columns = ["task", "arm − reference", "difference", "p, Holm"]
    return found


def _ratio(each: PairedComparison) -> str:
    return "–" if each.test is None else f"{each.test.better} : {each.test.worse}"
