"""The card's pictures: scores, differences, what was kept, the trade, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy
from matplotlib.figure import Figure

from imsm.reporting.figures.style import MARKERS, STYLE, WIDTH, colour, legend_below, line, one_axes, rows, whisker
from imsm.reporting.paired_comparison import total_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from imsm.reporting.report_data import ReportData
    from imsm.reporting.tradeoff import TradeoffPoint

_OUTCOMES = {
    "kept": ("#0072B2", ""),
    "forgotten": ("#D55E00", "////"),
    "learned": ("#56B4E9", ".."),
    "never_known": ("#DDDDDD", ""),
}


def draw_scores(evidence: ReportData) -> Figure:
    """Each task's scores with their intervals, an arm beside the other."""
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=1.2 + 0.24 * len(evidence.tasks) * len(evidence.arms))
        step = 0.8 / len(evidence.arms)
        for place, arm in enumerate(evidence.arms):
            for row, task in enumerate(evidence.tasks):
                found = total_of(arm, task, evidence.metrics[task])
                if found is None:
                    continue
                whisker(
                    axes,
                    found[1].estimate,
                    (found[1].low, found[1].high),
                    row + step * (place - (len(evidence.arms) - 1) / 2),
                    style=place,
                    label=arm.label if row == 0 else None,
                )
        names = [f"{task}\n{evidence.metrics[task]}" for task in evidence.tasks]
        rows(axes, names)
        axes.set_xlabel("points")
        legend_below(figure, axes)
    return figure


def draw_differences(evidence: ReportData) -> Figure:
    """Each contrast's difference with its interval, around no difference."""
    tasks = [t for t in evidence.tasks if any(each.task == t for each in evidence.contrasts)]
    pairs = list(dict.fromkeys((each.arm, each.reference) for each in evidence.contrasts))
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=1.2 + 0.24 * len(tasks) * len(pairs))
        axes.axvline(0, color="black", linewidth=0.8)
        step = 0.8 / len(pairs)
        labelled = set()
        for each in evidence.contrasts:
            place = pairs.index((each.arm, each.reference))
            whisker(
                axes,
                each.difference.estimate,
                (each.difference.low, each.difference.high),
                tasks.index(each.task) + step * (place - (len(pairs) - 1) / 2),
                style=place + 1,
                label=None if place in labelled else f"{each.arm} − {each.reference}",
            )
            labelled.add(place)
        rows(axes, tasks)
        axes.set_xlabel("difference in points, 95 % interval")
        legend_below(figure, axes)
    return figure


def draw_kept(evidence: ReportData) -> Figure:
    """A stacked bar per task and arm: kept, forgotten, learned, never known."""
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=1.1 + 0.3 * len(evidence.kept))
        for row, each in enumerate(evidence.kept):
            left = 0.0
            for outcome, (colour, hatch) in _OUTCOMES.items():
                share = 100 * getattr(each.counts, outcome) / max(1, each.counts.items)
                axes.barh(
                    row,
                    share,
                    left=left,
                    height=0.72,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.5,
                    label=outcome.replace("_", " ") if row == 0 else None,
                )
                if share >= 7:
                    dark = outcome in ("kept", "forgotten")
                    axes.text(
                        left + share / 2,
                        row,
                        f"{share:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else "black",
                        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
                    )
                left += share
        rows(axes, [f"{each.task}, {each.arm}" for each in evidence.kept])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the items")
        axes.grid(visible=False)
        legend_below(figure, axes)
    return figure


def draw_trade(evidence: ReportData) -> Figure:
    """Plasticity against stability: arms as marks, swept controls as lines."""
    target = evidence.target or ""
    placed = [trade for trade in evidence.trades if trade.has_position]
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=4.4)
        for number, curve in enumerate(evidence.curves):
            points = [t for t in curve.trades if t in placed]
            style = 3 + number
            name = f"{curve.control.replace('_', ' ')} ({curve.letter})"
            x = numpy.array([t.target or 0.0 for t in points])
            y = numpy.array([t.stability or 0.0 for t in points])
            line(axes, x, y, style=style, label=name)
            for trade in points:
                if trade.value is not None:
                    _name(axes, trade, f"{trade.value:g}", size=7)
        swept = {t.label for curve in evidence.curves for t in curve.trades if t.control}
        others = [t for t in placed if t.label not in swept]
        for number, trade in enumerate(others):
            arm = trade.control is None
            axes.plot(
                [trade.target or 0.0],
                [trade.stability or 0.0],
                marker=MARKERS[number % len(MARKERS)],
                markersize=9 if arm else 6,
                color=colour(number),
                markerfacecolor=colour(number) if arm else "none",  # what coincides is seen
                linestyle="none",
                zorder=3,
                label=trade.label,
            )
        axes.set_xlabel(f"learned: {evidence.target}, {evidence.metrics[target]} (points)")
        axes.set_ylabel("kept: mean retention of the forgetting tests (%)")
        _plasticity_axis(axes, evidence)
        axes.margins(0.08)
        legend_below(figure, axes)
    return figure


def _plasticity_axis(axes: Axes, evidence: ReportData) -> None:
    """The same scale on top as a share of PEFT's gain, where PEFT has one."""
    by_method = {t.method: t for t in evidence.trades if t.control is None}
    low, high = by_method["original"].target, by_method["peft"].target
    if by_method["peft"].plasticity is None or low is None or high is None:
        return
    gain = high - low

    def share(points: Any) -> Any:
        return 100 * (points - low) / gain

    def points(share: Any) -> Any:
        return low + share * gain / 100

    top = axes.secondary_xaxis("top", functions=(share, points))
    top.set_xlabel("plasticity: share of PEFT's gain (%)")


def _name(axes: Axes, trade: TradeoffPoint, text: str, *, size: int) -> None:
    axes.annotate(
        text, (trade.target or 0.0, trade.stability or 0.0), xytext=(5, 3), textcoords="offset points", fontsize=size
    )


def draw_training(logs: Mapping[str, pandas.DataFrame], evidence: ReportData) -> Figure:
    """Loss over the steps, and the gate's mean where there is a gate."""
    gated = {label: log for label, log in logs.items() if "gate_mean" in log}
    places = {arm.label: place for place, arm in enumerate(evidence.arms)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, 2 if gated else 1, squeeze=False)[0]
        for label, log in logs.items():
            smooth = log["loss"].rolling(max(1, len(log) // 20), min_periods=1).mean()
            panels[0].plot(log["step"], log["loss"], color=colour(places[label]), alpha=0.25, linewidth=0.8)
            line(panels[0], log["step"], smooth, style=places[label], label=label, marks=False)
        panels[0].set(xlabel="step", ylabel="loss (nats a token)", title="loss", ylim=(0, None))
        panels[0].legend(fontsize=8)
        for label, log in gated.items():
            line(panels[1], log["step"], log["gate_mean"], style=places[label], label=label, marks=False)
        if gated:
            panels[1].set(xlabel="step", ylabel="weight of the original", title="the gate's mean")
            panels[1].legend(fontsize=8)
    return figure
