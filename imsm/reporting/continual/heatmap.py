"""A sequence as a heat map: tasks across, stages down, an arm below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imsm.reporting.continual.render import heading, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_COLOURS = "Greys"  # what a printer makes of any other one
_DARK = 0.55
"""From this share of the scale on, text is white."""


def draw(records: Sequence[Record], path: Path) -> None:
    """Write the heat map of some arms of one sequence as a PNG.

    A cell shows the score in points and its distance to the original; frames mark where a task is
    learned, a gap parts the sequence's tasks from those that no stage learns.

    Args:
        records: as `imsm.reporting.continual.record.build_record` gives them.
        path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = max(len(record["tasks"]) for record in records)
    rows = len(records[0]["task_sequence"]) + 1
    width, height = 2.4 + 1.05 * tasks, 1.3 + len(records) * (0.75 + 0.5 * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = _range(records)
    image = None
    for place, record in enumerate(records):
        axes = figure.add_subplot(len(records), 1, place + 1)
        image = _panel(axes, record, low=low, high=high)
    assert image is not None
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.02)
    bar.set_label("score (points)")
    _title(figure, records[0])
    figure.savefig(path, dpi=160)


def _title(figure: Figure, record: Record) -> None:
    figure.suptitle(f"Learning {', then '.join(record['sequence'])}", fontsize=12)
    figure.supxlabel("score, and below it the distance to the original; framed: where the task is learned", fontsize=8)


def _panel(axes: Axes, record: Record, *, low: float, high: float) -> Any:
    """One arm; the columns after the sequence's tasks stand half a cell apart."""
    learned = len(record["task_sequence"])
    values = np.array([[_number(v) for v in row] for row in record["scores"]], float)
    lefts = [place + (0.25 if place >= learned else 0.0) for place in range(values.shape[1])]
    image = axes.imshow(np.zeros((1, 1)), cmap=_COLOURS, vmin=low, vmax=high, extent=(0, 0.001, 0, 0.001))
    for row, scores in enumerate(values):
        for place, score in enumerate(scores):
            to_original = None if row == 0 else score - values[0, place]
            framed = record["tasks"][place]["stage"] == row and row > 0
            _cell(axes, image, (lefts[place], row), score, to_original, framed=framed)
    axes.set_xlim(-0.02, lefts[-1] + 1.02)
    axes.set_ylim(len(values) + 0.02, -0.02)
    axes.set_aspect("auto")
    axes.set_xticks([left + 0.5 for left in lefts], ["\n".join(heading(task)) for task in record["tasks"]], fontsize=8)
    names = row_names(record)
    axes.set_yticks(
        [row + 0.5 for row in range(len(names))], [names[0], *(f"after {name}" for name in names[1:])], fontsize=9
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(str(record["method"]), loc="left", fontsize=10, fontweight="bold")
    return image


def _cell(
    axes: Axes, image: Any, corner: tuple[float, float], score: float, to_original: float | None, *, framed: bool
) -> None:
    from matplotlib.patches import Rectangle

    left, top = corner
    missing = bool(np.isnan(score))
    face = "none" if missing else image.cmap(image.norm(score))
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="0.6", linewidth=0.8))
    if framed:
        axes.add_patch(Rectangle((left + 0.04, top + 0.06), 0.92, 0.88, fill=False, edgecolor="black", linewidth=2))
        axes.add_patch(Rectangle((left + 0.06, top + 0.09), 0.88, 0.82, fill=False, edgecolor="white", linewidth=0.8))
    ink = "black" if missing or image.norm(score) < _DARK else "white"
    middle = left + 0.5
    if missing:
        axes.text(middle, top + 0.5, "–", ha="center", va="center", color=ink)
        return
    place = 0.5 if to_original is None else 0.38
    axes.text(middle, top + place, f"{score:.1f}", ha="center", va="center", color=ink, fontsize=10)
    if to_original is not None and not np.isnan(to_original):
        axes.text(
            middle,
            top + 0.74,
            f"{to_original:+.1f}".replace("-", "−"),
            ha="center",
            va="center",
            color=ink,
            fontsize=7.5,
        )


def _range(records: Sequence[Record]) -> tuple[float, float]:
    """The colours' scale: from 0 (or the lowest score) to 100 points, the same in every panel."""
    scores = [value for record in records for row in record["scores"] for value in row]
    return min([0.0, *(value for value in scores if value is not None)]), 100.0


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
