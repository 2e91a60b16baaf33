"""The paper's figures 3 and 4 as bars: a panel per target or PEFT method, an arm per shade."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from imsm.studies.paper.cells import row_average

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from imsm.evaluation.statistics.intervals import Interval
    from imsm.studies.paper.spec import PaperTable, RowSpec
    from imsm.studies.paper.table import RenderedTable

_COLOURS = ("#BBBBBB", "#E69F00", "#56B4E9", "#0072B2", "#009E73")
_HATCHES = ("", "////", "..", "", "xx")
_STYLE: Any = {"font.size": 9, "hatch.linewidth": 0.6, "axes.axisbelow": True}


def draw_bars(experiment: PaperTable, table: RenderedTable) -> Figure:
    """Scores with their 95 % intervals; a missing run leaves a dash, and the title counts them."""
    key = experiment.spec.panel or experiment.spec.keys[0]
    panels = list(dict.fromkeys(row.values[key] for row, _ in table.cells))
    shared = {k for k in experiment.spec.keys if len({r.values[k] for r, _ in table.cells}) == 1}
    names = [name for name in experiment.spec.averages]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 2.5 * len(panels)), layout="constrained")
        waiting = f"\nmissing runs (–): {len(table.missing)}" if table.missing else ""
        figure.suptitle(_wrapped(table.title) + waiting, fontsize=9)
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        arms: dict[str, int] = {}
        for axes, panel in zip(grid, panels, strict=True):
            rows = [(row, found) for row, found in table.cells if row.values[key] == panel]
            columns = list(rows[0][1])
            width = 0.8 / len(rows)
            for place, (row, found) in enumerate(rows):
                arm = _arm(row, {key, *shared})
                style = arms.setdefault(arm, len(arms))
                shift = width * (place - (len(rows) - 1) / 2)
                for spot, name in enumerate(columns):
                    _bar(axes, spot + shift, found[name].interval, width=width, style=style)
                for spot, name in enumerate(names, start=len(columns)):
                    mean = row_average(found, experiment.spec.averages[name])
                    _bar(axes, spot + shift, mean, width=width, style=style)
            axes.set_xticks(range(len(columns) + len(names)), [*columns, *(name.replace(" ", "\n") for name in names)])
            axes.set_ylabel("points")
            axes.set_ylim(0, 100)
            axes.set_title(f"{key.replace('_', ' ')}: {panel}", fontsize=9, fontweight="bold")
            axes.grid(axis="y", color="#E5E5E5")
            axes.spines[["top", "right"]].set_visible(False)
            if names:
                axes.axvline(len(columns) - 0.5, color="#999999", linewidth=0.8, linestyle=":")
        handles = [Patch(label=arm, **_look(n)) for arm, n in arms.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def write_bars(figure: Figure, folder: Path) -> None:
    """Leave the figure as PNG and SVG.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "imsm"}):
        figure.savefig(folder / "figure.png", dpi=150, metadata={"Software": None})
        figure.savefig(folder / "figure.svg", metadata={"Date": None})


def _wrapped(title: str) -> str:
    """What is shown, and below it of what."""
    head, _, rest = title.partition(" · ")
    return f"{head}\n{rest}"


def _arm(row: RowSpec, told: Collection[str]) -> str:
    """What tells a bar from the others of its panel."""
    shown = [value for key, value in row.values.items() if key not in told]
    return ", ".join(value.replace("_", " ") for value in shown if value)


def _bar(axes: Axes, place: float, found: Interval | None, *, width: float, style: int) -> None:
    if found is None:
        axes.text(place, 1, "–", ha="center")
        return
    error = [[max(0.0, found.estimate - found.low)], [max(0.0, found.high - found.estimate)]]
    axes.bar(place, found.estimate, width, yerr=error, error_kw={"elinewidth": 0.9, "capsize": 1.5}, **_look(style))


def _look(style: int) -> dict[str, Any]:
    return {
        "facecolor": _COLOURS[style % len(_COLOURS)],
        "hatch": _HATCHES[style % len(_HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }
