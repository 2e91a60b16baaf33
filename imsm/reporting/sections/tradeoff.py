"""Learning against forgetting, with the curves of the controls."""

from __future__ import annotations

from imsm.reporting.render.formatting import number, percent
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import ReportFigure, Section
from imsm.reporting.tradeoff import TradeoffCurve


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    placed = [trade for trade in evidence.trades if trade.has_position]
    if len(placed) < 2:
        return None
    lines = ["Up and right is better: more of the target learned, more of the rest kept."]
    for curve in evidence.curves:
        name = curve.control.replace("_", " ")
        lines.append(
            f"The {name} over {curve.letter} ({len(curve.trades)} points with its ends) spans "
            + (
                f"a hypervolume of {curve.area:.3f} (1 is PEFT's whole gain with all kept, and no bound)."
                if any(trade.plasticity is not None for trade in curve.trades)
                else "no hypervolume, since plasticity is undefined."
            )
        )
        for trade in placed:
            if trade.control is not None or trade.method in ("original", "peft"):
                continue
            assert trade.target is not None
            lines.append(
                f"At {trade.label}'s target score ({number(trade.target)}) the {name} "
                f"{kept_there(curve, trade.target)}; "
                f"{trade.label} keeps {percent(trade.stability)}."
            )
    if not evidence.curves:
        lines.append("The curves of the controls come with `imsm baselines <run folder>`.")
    from imsm.reporting.figures.report import draw_trade

    picture = ReportFigure(
        name="trade", alt="Plasticity against stability of all arms and controls", draw=lambda: draw_trade(evidence)
    )
    return Section(name="trade", title="Learning against forgetting", lines=lines, pictures=[picture])


def kept_there(curve: TradeoffCurve, target: float) -> str:
    """What a curve keeps at a target score."""
    found = curve.stability_at(target)
    if found is not None:
        return f"keeps {found:.1f} %"
    points = [
        (trade.target, trade.stability)
        for trade in curve.trades
        if trade.target is not None and trade.stability is not None
    ]
    if points and target < min(score for score, _ in points):
        return f"has learned more everywhere, and keeps up to {max(kept for _, kept in points):.1f} %"
    return "does not reach it"
