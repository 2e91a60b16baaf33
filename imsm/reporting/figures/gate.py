"""Figure of the gate: over examples, positions, and outcomes."""

from collections.abc import Sequence

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imsm.reporting.figures.style import LINES, STYLE, WIDTH, color, error_bar, label_rows, line
from imsm.reporting.gate_stats import gate_by_position
from imsm.reporting.paired_comparison import CORRECT
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun


def draw_gate(data: ReportData, gated: Sequence[ComparedRun]) -> Figure:
    """Draw one column of panels for each run."""
    tasks = [task for task in data.tasks if any(_gate_means(run, task).size for run in gated)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
        # one column per gate: panels side by side would be illegible on a telephone
        grid = figure.subplots(3, len(gated), squeeze=False).T
        for run, (histogram, positions, outcomes) in zip(gated, grid, strict=True):
            _draw_histograms(histogram, run, tasks)
            _draw_positions(positions, run, tasks)
            _draw_outcomes(outcomes, run, tasks, data)
            if len(gated) > 1:
                histogram.set_title(f"{run.label}: over examples")
    return figure


def _draw_histograms(axes: Axes, run: ComparedRun, tasks: Sequence[str]) -> None:
    values = [_gate_means(run, task) for task in tasks]
    low = min(each.min() for each in values if each.size)
    high = max(each.max() for each in values if each.size)
    # one binning for all tasks; the margin keeps the bins distinct if every gate is equal
    bins = numpy.linspace(low - 1e-3, high + 1e-3, 21).tolist()
    for style, (task, each) in enumerate(zip(tasks, values, strict=True)):
        dashes = LINES[style % len(LINES)]
        axes.hist(each, bins, histtype="step", color=color(style), linestyle=dashes, linewidth=1.4, label=task)
    axes.set_title("over examples")
    axes.set_xlabel("weight of the original")
    axes.set_ylabel("examples")


def _draw_positions(axes: Axes, run: ComparedRun, tasks: Sequence[str]) -> None:
    for style, task in enumerate(tasks):
        means = gate_by_position(run, task)
        if means is not None:
            line(axes, range(1, len(means) + 1), means, style=style, label=task)
    axes.set_title("along the response")
    axes.set_xlabel("generated token")
    axes.set_ylabel("weight of the original")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    if tasks:
        axes.legend(fontsize=7)


def _draw_outcomes(axes: Axes, run: ComparedRun, tasks: Sequence[str], data: ReportData) -> None:
    for row, task in enumerate(tasks):
        predictions = run.predictions(task)
        if predictions is None:
            continue
        gated = predictions[predictions["gate_mean"].notna()]
        correct = gated[f"score.{data.metrics[task]}"] >= CORRECT
        for shift, style, name, part in ((-0.15, 2, "correct", gated[correct]), (0.15, 6, "wrong", gated[~correct])):
            if len(part):
                low, median, high = numpy.quantile(part["gate_mean"].to_numpy(float), [0.25, 0.5, 0.75])
                error_bar(axes, median, (low, high), row + shift, style=style, label=name)
    # every task adds the same two labels
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=7)
    label_rows(axes, tasks)
    axes.set_title("correct and wrong")
    axes.set_xlabel("weight, median and quartiles")


def _gate_means(run: ComparedRun, task: str) -> numpy.ndarray:
    predictions = run.predictions(task)
    return numpy.empty(0) if predictions is None else predictions["gate_mean"].dropna().to_numpy(float)
