"""The gate's picture: over items, along the answer, right against wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy
from matplotlib.figure import Figure

from imsm.reporting.figures.style import LINES, STYLE, WIDTH, colour, line, rows, whisker
from imsm.reporting.gate_stats import gate_by_position
from imsm.reporting.runs import ComparedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from imsm.reporting.report_data import ReportData


def draw_gate(evidence: ReportData, gated: Sequence[ComparedRun]) -> Figure:
    """The gate over items per task, along the answer, and by right and wrong answers."""
    tasks = [task for task in evidence.tasks if any(_gates(arm, task).size for arm in gated)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9 * len(gated) + 0.4), layout="constrained")
        grid = figure.subplots(len(gated), 3, squeeze=False)
        for arm, (spread, along, apart) in zip(gated, grid, strict=True):
            _histograms(spread, arm, tasks)
            for place, task in enumerate(tasks):
                means = gate_by_position(arm, task)
                if means is not None:
                    line(along, range(1, len(means) + 1), means, style=place, label=task)
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


def _histograms(axes: Axes, arm: ComparedRun, tasks: Sequence[str]) -> None:
    values = [_gates(arm, task) for task in tasks]
    low = min(each.min() for each in values if each.size)
    high = max(each.max() for each in values if each.size)
    bins = numpy.linspace(low - 1e-3, high + 1e-3, 21).tolist()
    for place, (task, each) in enumerate(zip(tasks, values, strict=True)):
        axes.hist(
            each,
            bins=bins,
            histtype="step",
            color=colour(place),
            linestyle=LINES[place % len(LINES)],
            linewidth=1.4,
            label=task,
        )
    axes.set_title("over items")
    axes.set_xlabel("weight of the original")
    axes.set_ylabel("items")


def _right_and_wrong(axes: Axes, arm: ComparedRun, tasks: Sequence[str], evidence: ReportData) -> None:
    for row, task in enumerate(tasks):
        items = arm.items(task)
        if items is None:
            continue
        gated = items[items["gate_mean"].notna()]
        right = gated[f"score.{evidence.metrics[task]}"] >= 0.5
        for shift, style, name, part in ((-0.15, 2, "right", gated[right]), (0.15, 6, "wrong", gated[~right])):
            if len(part):
                gates = part["gate_mean"].to_numpy(float)
                low, middle, high = numpy.quantile(gates, [0.25, 0.5, 0.75])
                whisker(axes, middle, (low, high), row + shift, style=style, label=name)
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axes.legend(once.values(), once.keys(), fontsize=7)
    rows(axes, tasks)
    axes.set_title("right and wrong")
    axes.set_xlabel("weight, median and quartiles")


def _gates(arm: ComparedRun, task: str) -> numpy.ndarray:
    items = arm.items(task)
    if items is None:
        return numpy.empty(0)
    return numpy.asarray(items["gate_mean"].dropna().to_numpy(float))
