"""Figures 3 and 4 of the paper as bar charts: one panel per target or PEFT method, one bar per method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from imsm.studies.paper.cells import row_average
from imsm.studies.paper.spec import PaperTable
from imsm.studies.paper.table import Cells, FilledTable

_COLORS = ("#BBBBBB", "#E69F00", "#56B4E9", "#0072B2", "#009E73")
_HATCHES = ("", "////", "..", "", "xx")
_STYLE: Any = {"font.size": 9, "hatch.linewidth": 0.6, "axes.axisbelow": True}


def draw_bars(table: PaperTable, filled: FilledTable) -> Figure:
    """Draw scores with 95 % intervals; a missing run is a dash, and the title counts them."""
    spec, cells = table.spec, filled.cells
    key = spec.panel or spec.keys[0]
    panels = list(dict.fromkeys(row.values[key] for row, _ in cells))
    constant = {k for k in spec.keys if len({row.values[k] for row, _ in cells}) == 1}
    styles: dict[str, int] = {}
    with matplotlib.rc_context(_STYLE):
        # Not pyplot: it keeps every figure in global state and may look for a display.
        figure = Figure(figsize=(7.2, 1.3 + 2.5 * len(panels)), layout="constrained")
        missing = f"\nmissing runs (–): {len(filled.missing)}" if filled.missing else ""
        title, _, details = filled.text.caption.partition(" · ")
        figure.suptitle(f"{title}\n{details}{missing}", fontsize=9)
        for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            rows = [(row, row_cells) for row, row_cells in cells if row.values[key] == panel]
            for index, (row, row_cells) in enumerate(rows):
                # Equal rows of different panels have one style and one legend entry.
                shown = [value for k, value in row.values.items() if value and k not in {key, *constant}]
                style = styles.setdefault(", ".join(shown).replace("_", " "), len(styles))
                shift = 0.8 / len(rows) * (index - (len(rows) - 1) / 2)
                _draw_row(axes, row_cells, spec.averages, width=0.8 / len(rows), shift=shift, style=style)
            _format_axes(axes, list(rows[0][1]), list(spec.averages), title=f"{key.replace('_', ' ')}: {panel}")
        handles = [Patch(label=label, **_appearance(style)) for label, style in styles.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def write_bars(figure: Figure, folder: Path) -> None:
    """Write the figure as PNG and SVG.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without dates and random ids, the files of equal figures are equal.
    with matplotlib.rc_context({"svg.hashsalt": "imsm"}):
        figure.savefig(folder / "figure.png", dpi=150, metadata={"Software": None})
        figure.savefig(folder / "figure.svg", metadata={"Date": None})


def _draw_row(
    axes: Axes, cells: Cells, averages: dict[str, list[str]], *, width: float, shift: float, style: int
) -> None:
    intervals = [cell.interval for cell in cells.values()]
    intervals += [row_average(cells, columns) for columns in averages.values()]
    options: Any = {"error_kw": {"elinewidth": 0.9, "capsize": 1.5}, **_appearance(style)}
    for position, interval in enumerate(intervals):
        if interval is None:
            axes.text(position + shift, 1, "–", ha="center")
            continue
        # matplotlib rejects negative errors, which rounding may cause.
        error = [[max(0.0, interval.estimate - interval.low)], [max(0.0, interval.high - interval.estimate)]]
        axes.bar(position + shift, interval.estimate, width, yerr=error, **options)


def _format_axes(axes: Axes, columns: Sequence[str], averages: Sequence[str], *, title: str) -> None:
    axes.set_xticks(range(len(columns) + len(averages)), [*columns, *(name.replace(" ", "\n") for name in averages)])
    axes.set_ylabel("points")
    axes.set_ylim(0, 100)
    axes.set_title(title, fontsize=9, fontweight="bold")
    axes.grid(axis="y", color="#E5E5E5")
    axes.spines[["top", "right"]].set_visible(False)
    if averages:
        axes.axvline(len(columns) - 0.5, color="#999999", linewidth=0.8, linestyle=":")


def _appearance(style: int) -> dict[str, Any]:
    return {
        "facecolor": _COLORS[style % len(_COLORS)],
        "hatch": _HATCHES[style % len(_HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }
