"""How the card's pictures look: on paper, in grey, and to the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

# Okabe and Ito's palette; a marker and a hatch beside each, for print in grey.
COLOURS = ("#555555", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
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
}
WIDTH = 7.2
"""Inches: the text's width of a page."""


def one_axes(*, height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def whisker(
    axes: Axes, estimate: float, bounds: tuple[float, float], row: float, *, style: int, label: str | None
) -> None:
    """An estimate with its bounds, lying in a row."""
    low, high = bounds
    axes.errorbar(
        [estimate],
        [row],
        xerr=[[max(0.0, estimate - low)], [max(0.0, high - estimate)]],
        fmt=MARKERS[style % len(MARKERS)],
        color=colour(style),
        markersize=5,
        capsize=2.5,
        linewidth=1.4,
        label=label,
    )


def line(
    axes: Axes,
    x: Sequence[float] | range | pandas.Series,
    y: numpy.ndarray | pandas.Series,
    *,
    style: int,
    label: str,
    marks: bool = True,
) -> None:
    """A line in its style."""
    axes.plot(
        x,
        y,
        color=colour(style),
        linestyle=LINES[style % len(LINES)],
        marker=MARKERS[style % len(MARKERS)] if marks else None,
        markersize=3.5,
        linewidth=1.3,
        label=label,
    )


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Names down the side, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend under the picture."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, len(names))))


def colour(style: int) -> str:
    """The colour of the arm in this place."""
    return COLOURS[style % len(COLOURS)]
