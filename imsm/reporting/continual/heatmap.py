"""Heat map of a task sequence: tasks across, stages down, one panel per method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from imsm.reporting.continual.record import Record
from imsm.reporting.continual.render import column_name, row_names
from imsm.reporting.render.formatting import MISSING, format_number

# unchanged when printed in grayscale
_COLORMAP = "Greys"
_DARK = 0.55
"""Text is white above this fraction of the color scale."""


def draw_heatmap(records: Sequence[Record], path: Path) -> None:
    """Write the heat map of some methods on one sequence as a PNG.

    A cell shows the score in points and its difference from the original. A frame marks where a
    task is learned; a gap separates the sequence's tasks from those that no stage learns.
    """
    num_tasks = max(len(record["tasks"]) for record in records)
    num_rows = len(records[0]["task_sequence"]) + 1
    size = (2.4 + 1.05 * num_tasks, 1.3 + len(records) * (0.75 + 0.5 * num_rows))
    figure = Figure(figsize=size, layout="constrained")
    scores = [value for record in records for row in record["scores"] for value in row]
    # one scale for all panels; a correlation can be negative
    low = min([0.0, *(value for value in scores if value is not None)])
    panels = figure.subplots(len(records), 1, squeeze=False)[:, 0]
    images = [_draw_panel(axes, record, low=low, high=100.0) for axes, record in zip(panels, records, strict=True)]
    bar = figure.colorbar(images[-1], ax=figure.axes, shrink=0.8, pad=0.02)
    bar.set_label("score (points)")
    figure.suptitle(f"Task sequence: {', then '.join(records[0]['task_sequence'])}", fontsize=12)
    caption = "score, and below it the difference from the original; framed: where the task is learned"
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, dpi=160)


def _draw_panel(axes: Axes, record: Record, *, low: float, high: float) -> Any:
    """Draw one method; tasks that no stage learns are offset by a quarter cell."""
    num_learned = len(record["task_sequence"])
    values = np.array([[np.nan if value is None else value for value in row] for row in record["scores"]], float)
    lefts = [column + (0.25 if column >= num_learned else 0.0) for column in range(values.shape[1])]
    # an image that is too small to see: it provides the color scale, the cells are patches
    image = axes.imshow(np.zeros((1, 1)), cmap=_COLORMAP, vmin=low, vmax=high, extent=(0, 0.001, 0, 0.001))
    for row, scores in enumerate(values):
        for column, score in enumerate(scores):
            difference = None if row == 0 else score - values[0, column]
            framed = record["tasks"][column]["stage"] == row and row > 0
            _draw_cell(axes, image, (lefts[column], row), score, difference, framed=framed)
    axes.set_xlim(-0.02, lefts[-1] + 1.02)
    axes.set_ylim(len(values) + 0.02, -0.02)
    # imshow made the aspect equal
    axes.set_aspect("auto")
    columns = ["\n".join(column_name(task)) for task in record["tasks"]]
    axes.set_xticks([left + 0.5 for left in lefts], columns, fontsize=8)
    first, *stages = row_names(record)
    rows = [first, *(f"after {name}" for name in stages)]
    axes.set_yticks([row + 0.5 for row in range(len(rows))], rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(str(record["method"]), loc="left", fontsize=10, fontweight="bold")
    return image


def _draw_cell(
    axes: Axes, image: Any, corner: tuple[float, float], score: float, difference: float | None, *, framed: bool
) -> None:
    left, top = corner
    missing = bool(np.isnan(score))
    face = "none" if missing else image.cmap(image.norm(score))
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="0.6", linewidth=0.8))
    if framed:
        # black and white, so that the frame is visible on light and on dark cells
        axes.add_patch(Rectangle((left + 0.04, top + 0.06), 0.92, 0.88, fill=False, edgecolor="black", linewidth=2))
        axes.add_patch(Rectangle((left + 0.06, top + 0.09), 0.88, 0.82, fill=False, edgecolor="white", linewidth=0.8))
    ink = "black" if missing or image.norm(score) < _DARK else "white"
    style: Any = {"ha": "center", "va": "center", "color": ink}
    if missing:
        axes.text(left + 0.5, top + 0.5, MISSING, **style)
        return
    axes.text(left + 0.5, top + (0.5 if difference is None else 0.38), format_number(score), fontsize=10, **style)
    if difference is not None and not np.isnan(difference):
        axes.text(left + 0.5, top + 0.74, format_number(difference, signed=True), fontsize=7.5, **style)
