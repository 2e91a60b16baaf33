"""Figures of scores, differences, transitions, trade-off and training."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imsm.evaluation.statistics.intervals import Interval
from imsm.reporting.figures.style import (
    MARKERS,
    STYLE,
    WIDTH,
    color,
    error_bar,
    label_rows,
    legend_below,
    line,
    one_axes,
)
from imsm.reporting.report_data import ReportData

_OUTCOMES = {
    "kept": ("retained", "#0072B2", "", "white"),
    "forgotten": ("forgotten", "#D55E00", "////", "white"),
    "learned": ("learned", "#56B4E9", "..", "black"),
    "never_known": ("never known", "#DDDDDD", "", "black"),
}
"""Label, color, hatch and text color by field of `OutcomeTransitions`."""


def draw_scores(data: ReportData) -> Figure:
    """Draw each task's scores with their intervals."""
    labels = [run.label for run in data.runs]
    intervals = {
        (data.tasks.index(task), labels.index(label)): value for (task, label), value in data.score_intervals.items()
    }
    rows = [f"{task}\n{data.metrics[task]}" for task in data.tasks]
    return _draw_intervals(intervals, rows, labels, first_style=0, xlabel="points")


def draw_differences(data: ReportData) -> Figure:
    """Draw each comparison's difference with its interval."""
    tasks = [task for task in data.tasks if any(each.task == task for each in data.comparisons)]
    labels = list(dict.fromkeys(f"{each.run} − {each.reference}" for each in data.comparisons))
    intervals = {
        (tasks.index(each.task), labels.index(f"{each.run} − {each.reference}")): each.difference
        for each in data.comparisons
    }
    xlabel = "difference in points, 95 % interval"
    # from style 1 on: gray, style 0, is the original's everywhere
    return _draw_intervals(intervals, tasks, labels, first_style=1, xlabel=xlabel, zero_line=True)


def _draw_intervals(
    intervals: Mapping[tuple[int, int], Interval],
    rows: list[str],
    labels: list[str],
    *,
    first_style: int,
    xlabel: str,
    zero_line: bool = False,
) -> Figure:
    """Draw intervals by row and index of their label, each label once in the legend."""
    step = 0.8 / len(labels)
    unlabeled = set(range(len(labels)))
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=1.2 + 0.24 * len(rows) * len(labels))
        if zero_line:
            axes.axvline(0, color="black", linewidth=0.8)
        for (row, index), interval in intervals.items():
            error_bar(
                axes,
                interval.estimate,
                (interval.low, interval.high),
                row + step * (index - (len(labels) - 1) / 2),
                style=first_style + index,
                # not simply the first row: a run may lack the first task
                label=labels[index] if index in unlabeled else None,
            )
            unlabeled.discard(index)
        label_rows(axes, rows)
        axes.set_xlabel(xlabel)
        legend_below(figure, axes)
    return figure


def draw_transitions(data: ReportData) -> Figure:
    """Draw a stacked bar for each task and run."""
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=1.1 + 0.3 * len(data.retentions))
        for row, retention in enumerate(data.retentions):
            left = 0.0
            for outcome, (name, fill, hatch, ink) in _OUTCOMES.items():
                share = 100 * getattr(retention.counts, outcome) / max(1, retention.counts.items)
                label = name if row == 0 else None
                style: Any = {"color": fill, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
                axes.barh(row, share, left=left, height=0.72, label=label, **style)
                # a number does not fit into a narrower part
                if share >= 7:
                    box = {"facecolor": fill, "edgecolor": "none", "pad": 0.8}
                    text, center = f"{share:.0f}", left + share / 2
                    axes.text(center, row, text, ha="center", va="center", fontsize=8, color=ink, bbox=box)
                left += share
        label_rows(axes, [f"{each.task}, {each.run}" for each in data.retentions])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the examples")
        axes.grid(visible=False)
        legend_below(figure, axes)
    return figure


def draw_tradeoff(data: ReportData) -> Figure:
    """Draw stability over the target score: runs as markers, swept baselines as lines."""
    # a point without predictions of every forgetting test has no stability
    positions = {
        p.label: (p.target, p.stability) for p in data.points if p.target is not None and p.stability is not None
    }
    swept = {point.label for curve in data.curves for point in curve.points if point.baseline}
    target = data.target or ""
    with matplotlib.rc_context(STYLE):
        figure, axes = one_axes(height=4.4)
        # styles 0 to 2 are the original's, PEFT's and IMSM's
        for style, curve in enumerate(data.curves, start=3):
            points = [point for point in curve.points if point.label in positions]
            x, y = zip(*(positions[point.label] for point in points), strict=True)
            line(axes, x, y, style=style, label=f"{curve.baseline.replace('_', ' ')} ({curve.symbol})")
            for point in points:
                if point.value is not None:
                    at = positions[point.label]
                    axes.annotate(f"{point.value:g}", at, xytext=(5, 3), textcoords="offset points", fontsize=7)
        others = [point for point in data.points if point.label in positions and point.label not in swept]
        for style, point in enumerate(others):
            is_run = point.baseline is None
            axes.plot(
                *([value] for value in positions[point.label]),
                marker=MARKERS[style % len(MARKERS)],
                markersize=9 if is_run else 6,
                color=color(style),
                # hollow, so that coinciding points stay visible
                markerfacecolor=color(style) if is_run else "none",
                linestyle="none",
                zorder=3,
                label=point.label,
            )
        axes.set_xlabel(f"target score: {target}, {data.metrics[target]} (points)")
        axes.set_ylabel("stability: mean retention of the forgetting tests (%)")
        _add_plasticity_axis(axes, data)
        axes.margins(0.08)
        legend_below(figure, axes)
    return figure


def _add_plasticity_axis(axes: Axes, data: ReportData) -> None:
    """Add a top axis with the share of PEFT's gain, if PEFT gained anything."""
    by_method = {point.method: point for point in data.points if point.baseline is None}
    low, peft = by_method["original"].target, by_method.get("peft")
    high = None if peft is None else peft.target
    if peft is None or peft.plasticity is None or low is None or high is None:
        return
    gain = high - low
    # matplotlib needs both directions, and calls them with arrays
    both = (lambda points: 100 * (points - low) / gain, lambda share: low + share * gain / 100)
    top = axes.secondary_xaxis("top", functions=both)
    top.set_xlabel("plasticity: share of PEFT's gain (%)")


def draw_training(logs: Mapping[str, pandas.DataFrame], data: ReportData) -> Figure:
    """Draw the loss over the steps, and the gate's mean if there is a gate."""
    gated = {label: log for label, log in logs.items() if "gate_mean" in log}
    styles = {run.label: style for style, run in enumerate(data.runs)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, 2 if gated else 1, squeeze=False)[0]
        for label, log in logs.items():
            # the loss of a step is that of one batch: the noise hides the trend
            smooth = log["loss"].rolling(max(1, len(log) // 20), min_periods=1).mean()
            panels[0].plot(log["step"], log["loss"], color=color(styles[label]), alpha=0.25, linewidth=0.8)
            line(panels[0], log["step"], smooth, style=styles[label], label=label, markers=False)
        # from 0, so that the height of the curve is the loss and not its change
        panels[0].set(xlabel="step", ylabel="loss (nats per token)", title="loss", ylim=(0, None))
        panels[0].legend(fontsize=8)
        for label, log in gated.items():
            line(panels[1], log["step"], log["gate_mean"], style=styles[label], label=label, markers=False)
        if gated:
            panels[1].set(xlabel="step", ylabel="weight of the original", title="gate mean")
            panels[1].legend(fontsize=8)
    return figure
