"""Style of the figures, readable in grayscale and by color-blind readers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette; markers and dashes distinguish the runs in grayscale
COLORS = ("#555555", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STYLE: Any = {
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
    "text.parse_math": False,  # names may contain dollar signs
}
WIDTH = 5.4
"""Width of a figure in inches; its text stays legible when a page of 400 pixels shrinks it."""

_CHARACTER = 0.5 * STYLE["font.size"] / 72
"""Mean width of a character in inches."""
_ROW = 1.7 * STYLE["font.size"] / 72
"""Height of a legend's row in inches."""
_HANDLE = 8
"""Width of a legend's marker and space, in characters."""


def one_axes(*, height: float) -> tuple[Figure, Axes]:
    """Return a full-width figure with one pair of axes; ``height`` is in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def error_bar(
    axes: Axes, estimate: float, bounds: tuple[float, float], y: float, *, style: int, label: str | None
) -> None:
    """Draw an estimate with a horizontal error bar."""
    low, high = bounds
    # matplotlib refuses negative lengths; rounding can place an estimate outside its interval
    axes.errorbar(
        [estimate],
        [y],
        xerr=[[max(0.0, estimate - low)], [max(0.0, high - estimate)]],
        fmt=MARKERS[style % len(MARKERS)],
        color=color(style),
        markersize=5,
        capsize=2.5,
        linewidth=1.4,
        label=label,
    )


def line(
    axes: Axes,
    x: Sequence[float] | range | numpy.ndarray | pandas.Series,
    y: Sequence[float] | numpy.ndarray | pandas.Series,
    *,
    style: int,
    label: str,
    markers: bool = True,
) -> None:
    """Draw a line in the color, dashes and marker of a style."""
    axes.plot(
        x,
        y,
        color=color(style),
        linestyle=LINES[style % len(LINES)],
        marker=MARKERS[style % len(MARKERS)] if markers else None,
        markersize=3.5,
        linewidth=1.3,
        label=label,
    )


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label rows 0, 1, ... on the y axis, from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    # inverted, so that row 0 is at the top as in the tables
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Place the legend below the axes, in as many columns as fit; the figure grows with its rows."""
    handles, names = axes.get_legend_handles_labels()
    longest = max(map(len, names), default=0) + _HANDLE
    columns = max(1, min(4, len(names), int(figure.get_figwidth() / (longest * _CHARACTER))))
    figure.set_figheight(figure.get_figheight() + _ROW * (math.ceil(len(names) / columns) - 1))
    # "outside" is placed by the constrained layout only, which keeps the axes clear of it
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def color(style: int) -> str:
    """Return the color of a style number."""
    return COLORS[style % len(COLORS)]
