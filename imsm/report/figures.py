"""The card's pictures: legible on paper and in grey, colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy
from matplotlib.figure import Figure

from imsm.report.arms import Arm
from imsm.report.contrasts import total_of
from imsm.report.telemetry import gate_by_position

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from imsm.report.frontier import Trade
    from imsm.report.sections import Evidence

# Okabe and Ito's palette; a marker and a hatch beside each, for print in grey.
_COLOURS = ("#555555", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_OUTCOMES = {
    "kept": ("#0072B2", ""),
    "forgotten": ("#D55E00", "////"),
    "learned": ("#56B4E9", ".."),
    "never_known": ("#DDDDDD", ""),
}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}
_WIDTH = 7.2
"""Inches: the text's width of a page."""


def draw_scores(evidence: Evidence) -> Figure:
    """Each task's scores with their intervals, an arm beside the other."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=1.2 + 0.24 * len(evidence.tasks) * len(evidence.arms))
        step = 0.8 / len(evidence.arms)
        for place, arm in enumerate(evidence.arms):
            for row, task in enumerate(evidence.tasks):
                found = total_of(arm, task, evidence.metrics[task])
                if found is None:
                    continue
                _bar(
                    axes,
                    found[1].estimate,
                    (found[1].low, found[1].high),
                    row + step * (place - (len(evidence.arms) - 1) / 2),
                    style=place,
                    label=arm.label if row == 0 else None,
                )
        names = [f"{task}\n{evidence.metrics[task]}" for task in evidence.tasks]
        _rows(axes, names)
        axes.set_xlabel("points")
        _legend_below(figure, axes)
    return figure


def draw_differences(evidence: Evidence) -> Figure:
    """Each contrast's difference with its interval, around no difference."""
    tasks = [t for t in evidence.tasks if any(each.task == t for each in evidence.contrasts)]
    pairs = list(dict.fromkeys((each.arm, each.reference) for each in evidence.contrasts))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=1.2 + 0.24 * len(tasks) * len(pairs))
        axes.axvline(0, color="black", linewidth=0.8)
        step = 0.8 / len(pairs)
        labelled = set()
        for each in evidence.contrasts:
            place = pairs.index((each.arm, each.reference))
            _bar(
                axes,
                each.difference.estimate,
                (each.difference.low, each.difference.high),
                tasks.index(each.task) + step * (place - (len(pairs) - 1) / 2),
                style=place + 1,
                label=None if place in labelled else f"{each.arm} − {each.reference}",
            )
            labelled.add(place)
        _rows(axes, tasks)
        axes.set_xlabel("difference in points, 95 % interval")
        _legend_below(figure, axes)
    return figure


def draw_kept(evidence: Evidence) -> Figure:
    """A stacked bar per task and arm: kept, forgotten, learned, never known."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=1.1 + 0.3 * len(evidence.kept))
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
        _rows(axes, [f"{each.task}, {each.arm}" for each in evidence.kept])
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the items")
        axes.grid(visible=False)
        _legend_below(figure, axes)
    return figure


def draw_trade(evidence: Evidence) -> Figure:
    """Plasticity against stability: arms as marks, swept controls as lines."""
    target = evidence.target or ""
    placed = [t for t in evidence.trades if t.target is not None and t.stability is not None]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(height=4.4)
        for number, curve in enumerate(evidence.curves):
            points = [t for t in curve.trades if t in placed]
            style = 3 + number
            name = f"{curve.control.replace('_', ' ')} ({curve.letter})"
            x = numpy.array([t.target or 0.0 for t in points])
            y = numpy.array([t.stability or 0.0 for t in points])
            _line(axes, x, y, style=style, label=name)
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
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=9 if arm else 6,
                color=_colour(number),
                markerfacecolor=_colour(number) if arm else "white",
                linestyle="none",
                zorder=3,
                label=trade.label,
            )
        axes.set_xlabel(f"learned: {evidence.target}, {evidence.metrics[target]} (points)")
        axes.set_ylabel("kept: mean retention of the forgetting tests (%)")
        _plasticity_axis(axes, evidence)
        axes.margins(0.08)
        _legend_below(figure, axes)
    return figure


def _plasticity_axis(axes: Axes, evidence: Evidence) -> None:
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


def _name(axes: Axes, trade: Trade, text: str, *, size: int) -> None:
    axes.annotate(
        text,
        (trade.target or 0.0, trade.stability or 0.0),
        xytext=(5, 3),
        textcoords="offset points",
        fontsize=size,
    )


def draw_gate(evidence: Evidence, gated: Sequence[Arm]) -> Figure:
    """The gate over items per task, along the answer, and by right and wrong answers."""
    tasks = [task for task in evidence.tasks if any(_gates(arm, task).size for arm in gated)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.9 * len(gated) + 0.4), layout="constrained")
        grid = figure.subplots(len(gated), 3, squeeze=False)
        for arm, (spread, along, apart) in zip(gated, grid, strict=True):
            _histograms(spread, arm, tasks)
            for place, task in enumerate(tasks):
                means = gate_by_position(arm, task)
                if means is not None:
                    _line(along, range(1, len(means) + 1), means, style=place, label=task)
            along.set_title("along the answer")
            along.set_xlabel("generated token")
            along.set_ylabel("weight of the original")
            along.xaxis.get_major_locator().set_params(integer=True)
            if tasks:
                along.legend(fontsize=7)
            _right_and_wrong(apart, arm, tasks, evidence)
            if len(gated) > 1:
                spread.set_title(f"{arm.label}: over items")
    return figure


def draw_training(logs: Mapping[str, pandas.DataFrame], evidence: Evidence) -> Figure:
    """Loss over the steps, and the gate's mean where there is a gate."""
    gated = {label: log for label, log in logs.items() if "gate_mean" in log}
    places = {arm.label: place for place, arm in enumerate(evidence.arms)}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, 2 if gated else 1, squeeze=False)[0]
        for label, log in logs.items():
            smooth = log["loss"].rolling(max(1, len(log) // 20), min_periods=1).mean()
            panels[0].plot(
                log["step"], log["loss"], color=_colour(places[label]), alpha=0.25, linewidth=0.8
            )
            _line(panels[0], log["step"], smooth, style=places[label], label=label, marks=False)
        panels[0].set(xlabel="step", ylabel="loss (nats a token)", title="loss", ylim=(0, None))
        panels[0].legend(fontsize=8)
        for label, log in gated.items():
            _line(
                panels[1],
                log["step"],
                log["gate_mean"],
                style=places[label],
                label=label,
                marks=False,
            )
        if gated:
            panels[1].set(xlabel="step", ylabel="weight of the original", title="the gate's mean")
            panels[1].legend(fontsize=8)
    return figure


# ---------------------------------------------------------------------- parts


def _figure(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _bar(
    axes: Axes,
    estimate: float,
    bounds: tuple[float, float],
    row: float,
    *,
    style: int,
    label: str | None,
) -> None:
    low, high = bounds
    axes.errorbar(
        [estimate],
        [row],
        xerr=[[max(0.0, estimate - low)], [max(0.0, high - estimate)]],
        fmt=_MARKERS[style % len(_MARKERS)],
        color=_colour(style),
        markersize=5,
        capsize=2.5,
        linewidth=1.4,
        label=label,
    )


def _line(
    axes: Axes,
    x: Sequence[float] | range | pandas.Series,
    y: numpy.ndarray | pandas.Series,
    *,
    style: int,
    label: str,
    marks: bool = True,
) -> None:
    axes.plot(
        x,
        y,
        color=_colour(style),
        linestyle=_LINES[style % len(_LINES)],
        marker=_MARKERS[style % len(_MARKERS)] if marks else None,
        markersize=3.5,
        linewidth=1.3,
        label=label,
    )


def _histograms(axes: Axes, arm: Arm, tasks: Sequence[str]) -> None:
    values = [_gates(arm, task) for task in tasks]
    low = min(each.min() for each in values)
    high = max(each.max() for each in values)
    bins = numpy.linspace(low - 1e-3, high + 1e-3, 21).tolist()
    for place, (task, each) in enumerate(zip(tasks, values, strict=True)):
        axes.hist(
            each,
            bins=bins,
            histtype="step",
            color=_colour(place),
            linestyle=_LINES[place % len(_LINES)],
            linewidth=1.4,
            label=task,
        )
    axes.set_title("over items")
    axes.set_xlabel("weight of the original")
    axes.set_ylabel("items")


def _right_and_wrong(axes: Axes, arm: Arm, tasks: Sequence[str], evidence: Evidence) -> None:
    for row, task in enumerate(tasks):
        items = arm.items(task)
        assert items is not None
        gated = items[items["gate_mean"].notna()]
        right = gated[f"score.{evidence.metrics[task]}"] >= 0.5
        for shift, style, name, part in (
            (-0.15, 2, "right", gated[right]),
            (0.15, 6, "wrong", gated[~right]),
        ):
            if len(part):
                gates = part["gate_mean"].to_numpy(float)
                low, middle, high = numpy.quantile(gates, [0.25, 0.5, 0.75])
                _bar(axes, middle, (low, high), row + shift, style=style, label=name)
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axes.legend(once.values(), once.keys(), fontsize=7)
    _rows(axes, tasks)
    axes.set_title("right and wrong")
    axes.set_xlabel("weight, median and quartiles")


def _gates(arm: Arm, task: str) -> numpy.ndarray:
    items = arm.items(task)
    if items is None:
        return numpy.empty(0)
    return numpy.asarray(items["gate_mean"].dropna().to_numpy(float))


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, len(names))))


def _colour(style: int) -> str:
    return _COLOURS[style % len(_COLOURS)]
