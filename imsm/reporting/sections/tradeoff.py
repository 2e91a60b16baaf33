"""Section: learning versus forgetting, with the curves of swept baselines."""

from __future__ import annotations

from imsm.reporting.figures.report import draw_tradeoff
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import format_number, format_percent
from imsm.reporting.report_data import ReportData
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint


def build(data: ReportData) -> Section | None:
    """Build the section, or None with fewer than two points."""
    points = [point for point in data.points if point.has_position]
    if len(points) < 2:
        return None
    runs = [point for point in points if point.baseline is None and point.method not in ("original", "peft")]
    texts = ["Up and to the right is better: more of the target learned, more of the other tasks retained."]
    for curve in data.curves:
        texts += _describe_curve(curve, runs)
    if not data.curves:
        texts.append("Run `imsm baselines RUN` to add the curves of swept baselines.")
    figure = ReportFigure(
        name="tradeoff",
        alt="Plasticity and stability of all runs and baselines",
        draw=lambda: draw_tradeoff(data),
    )  # fmt: skip
    return Section(name="tradeoff", title="Learning versus forgetting", paragraphs=texts, figures=[figure])


def _describe_curve(curve: TradeoffCurve, runs: list[TradeoffPoint]) -> list[str]:
    name = curve.baseline.replace("_", " ")
    area = "undefined, because plasticity is undefined"
    if any(point.plasticity is not None for point in curve.points):
        area = f"{curve.hypervolume:.3f} (1 is PEFT's full gain with full retention; values above 1 are possible)"
    texts = [f"{name} over {curve.symbol} ({len(curve.points)} points including its ends): hypervolume {area}."]
    for run in runs:
        assert run.target is not None
        texts.append(
            f"At the target score of {run.label} ({format_number(run.target)}), {name} "
            f"{retention_on_curve(curve, run.target)}; {run.label} retains {format_percent(run.stability)}."
        )
    return texts


def retention_on_curve(curve: TradeoffCurve, target: float) -> str:
    """Describe what a curve retains at a target score."""
    retained = curve.stability_at(target)
    if retained is not None:
        return f"retains {retained:.1f} %"
    if curve.positions and target < min(score for score, _ in curve.positions):
        best = max(stability for _, stability in curve.positions)
        return f"scores higher at every point and retains up to {best:.1f} %"
    return "does not reach it"
