"""What was kept, forgotten, learned and never known."""

from __future__ import annotations

from imsm.evaluation.statistics.forgetting import OutcomeTransitions
from imsm.reporting.paired_comparison import Retention
from imsm.reporting.render.formatting import number, percent
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import ReportFigure, Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    if not evidence.kept:
        return None
    rows = [
        {
            "task": evidence.name(each.task),
            "arm": each.arm,
            **_shares(each.counts),
            "chance": number(each.chance),
            "retention": _retention(each, evidence),
        }
        for each in evidence.kept
    ]
    from imsm.reporting.figures.report import draw_kept

    picture = ReportFigure(
        name="kept",
        alt="Shares of items kept, forgotten, learned and never known, per task and arm",
        draw=lambda: draw_kept(evidence),
    )
    lines = [
        "Of the original's right answers some are kept and some forgotten; of its wrong ones some "
        "learned, the others never known. Retention is 100 (s − c)/(b − c) %: the arm's score s "
        "and the original's b above the chance level c; undefined where the original is not above "
        "chance by two standard errors."
    ]
    return table_section("kept", "Kept, forgotten, learned", rows, lines, 2, [picture])


def _shares(counts: OutcomeTransitions) -> dict[str, str]:
    names = ("kept", "forgotten", "learned", "never_known")
    return {name.replace("_", " "): str(getattr(counts, name)) for name in names}


def _retention(each: Retention, evidence: ReportData) -> str:
    return "target" if each.task == evidence.target else percent(each.retained)
