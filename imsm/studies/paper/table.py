"""An experiment as a table: ours with intervals, the paper's number under it, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.studies.paper.cells import MARKS, TableCell, build_cell, row_average, trainable_millions
from imsm.studies.paper.runs import RunIndex, RunRef, required_runs
from imsm.studies.paper.spec import ColumnSpec, PaperTable, RowSpec
from imsm.utils.files import write_atomic

if TYPE_CHECKING:
    import pandas

    from imsm.evaluation.statistics.intervals import Interval

KEPT = "retention average"


@dataclass(frozen=True, kw_only=True)
class RenderedTable:
    """What is shown: a title, cells as texts, notes, and the commands of what is missing.

    ``cells`` has the cells of every row that is ours, by column.
    """

    title: str
    frame: pandas.DataFrame
    numbers: int
    notes: list[str]
    missing: list[RunRef]
    cells: list[tuple[RowSpec, dict[str, TableCell]]]


def build_table(experiment: PaperTable, runs: RunIndex, *, scale: str, seeds: int, protocol: str) -> RenderedTable:
    """Everything that a table shows.

    Args:
        experiment: which.
        runs: where its runs are looked up.
        scale: mini or paper.
        seeds: 0 to seeds − 1 are used.
        protocol: clean or released; they are never mixed.
    """
    import pandas

    grid = experiment.spec
    made: dict[tuple[object, ...], TableCell] = {}

    def cell(row: RowSpec, column: ColumnSpec) -> TableCell:
        """A row's cell; rows of the same runs (the miniature's) have the same."""
        others = (row, experiment.reference_of(row))
        key = (column.name, *(r and experiment.overrides(r, column, scale=scale, seed=0) for r in others))
        if key not in made:
            made[key] = build_cell(experiment, row, column, runs=runs, scale=scale, seeds=seeds, protocol=protocol)
        return made[key]

    cells = [
        (row, {column.name: cell(row, column) for column in experiment.columns_of(row)}) for row in experiment.rows
    ]
    counts = any("params_millions" in row.paper for row in experiment.rows)
    lines = []
    for row, found in cells:
        ours = {**_names(row), "whose": "ours"}
        paper = {**{key: "" for key in row.values}, "whose": f"paper ({_paper_model(row)})"}
        for column in grid.columns:
            ours[column.name] = _text(found[column.name]) if column.name in found else ""
            paper[column.name] = row.paper.get(column.name) or "–"
        for name, over in grid.averages.items():
            mean = row_average(found, over)
            ours[name] = "–" if mean is None else _bounded(mean)
            paper[name] = row.paper.get(name) or "–"
        if counts:
            millions = trainable_millions(experiment, row, runs=runs, scale=scale, seeds=seeds)
            ours["parameters"] = "–" if millions is None else f"{millions:.3f} M"
            given = row.paper.get("params_millions")
            paper["parameters"] = f"{given} M" if given else "–"
        lines.append(ours)
        if any(value not in ("", "–") for name, value in paper.items() if name in found):
            lines.append(paper)
    waiting = [run for run in required_runs(experiment, runs, scale=scale, seeds=seeds) if not run.result]
    return RenderedTable(
        title=_title(experiment, scale=scale, seeds=seeds, protocol=protocol),
        frame=pandas.DataFrame(lines).fillna("–"),
        numbers=len(grid.keys) + 1,
        notes=[
            *_notes(cells, scale=scale, seeds=seeds, reference=grid.reference),
            *([f"The paper: {grid.paper_text}"] if grid.paper_text else []),
        ],
        missing=waiting,
        cells=cells,
    )


def write_table(table: RenderedTable, folder: Path) -> None:
    """Leave the table as Markdown (with notes and commands), CSV and LaTeX.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    align = ["left" if n < table.numbers else "right" for n in range(table.frame.shape[1])]
    body = table.frame.to_markdown(index=False, disable_numparse=True, colalign=align)
    lines = [f"# {table.title}", "", body]
    lines += [line for note in table.notes for line in ("", note)]
    if table.missing:
        lines += ["", "## Missing", ""]
        lines += [f"- {missing_line(run)}" for run in table.missing]
    write_atomic(folder / "table.md", "\n".join([*lines, ""]))
    write_atomic(folder / "table.csv", table.frame.to_csv(index=False))
    columns = "l" * table.numbers + "r" * (table.frame.shape[1] - table.numbers)
    latex = table.frame.style.hide(axis="index").to_latex(
        column_format=columns, hrules=True, caption=_latex(table.title)
    )
    write_atomic(folder / "table.tex", _latex_cells(latex))


def missing_line(run: RunRef) -> str:
    """Why a run is not there, and what makes it."""
    if run.state == "failed":
        return f"failed ({run.failure}): `{run.command}`"
    return f"`{run.command}`"


def _title(experiment: PaperTable, *, scale: str, seeds: int, protocol: str) -> str:
    ours = "ours: the miniature in every row" if scale == "mini" else "ours: the paper's models"
    over = "seed 0" if seeds == 1 else f"{seeds} seeds"
    return f"{experiment.spec.title} · {ours} · {over} · {protocol} protocol"


def _names(row: RowSpec) -> dict[str, str]:
    return {key: value or "–" for key, value in row.values.items()}


def _paper_model(row: RowSpec) -> str:
    return row.values.get("backbone") or "its model"


def _text(cell: TableCell) -> str:
    if cell.interval is None:
        failed = any(run.state == "failed" for run in cell.missing)
        return "failed" if failed else "missing" if cell.missing else "–"
    found = cell.interval
    mark = MARKS[cell.mark][0] if cell.mark else ""
    dagger = "†" if cell.trained_on else ""
    return _bounded(found, marks=mark + dagger)


def _bounded(found: Interval, *, marks: str = "") -> str:
    bounds = f" [{found.low:.1f}, {found.high:.1f}]" if found.low < found.high else ""
    return f"{found.estimate:.1f}{marks}{bounds}".replace("-", "−")


def _notes(
    cells: Sequence[tuple[RowSpec, Mapping[str, TableCell]]], *, scale: str, seeds: int, reference: Mapping[str, str]
) -> list[str]:
    every = [cell for _, found in cells for cell in found.values()]
    notes = []
    if scale == "mini" and any(row.paper for row, _ in cells):
        notes.append(
            "The paper's numbers are of other models, other data and far more of it: they stand "
            "there to be read, and are subtracted from nothing."
        )
    notes.append(
        "[low, high]: 95 %, "
        + (
            "a bootstrap over items (whole passages), an average's as if all scores of a test "
            "erred together; other seeds are not in it."
            if seeds == 1
            else "over seeds and items (F1, correlations and averages: Student's over seeds)."
        )
    )
    against = ", ".join(f"{key} = {value}" for key, value in reference.items())
    for name, (mark, test) in MARKS.items():
        if any(cell.mark == name for cell in every):
            notes.append(f"{mark} differs from the row with {against} (p < 0.05, not adjusted): {test}.")
    if any(cell.trained_on for cell in every):
        notes.append("† the run was trained on this task too; it enters no average.")
    return notes


def _latex(text: str) -> str:
    for char, safe in (("%", r"\%"), ("_", r"\_"), ("·", r"$\cdot$"), ("−", "--")):
        text = text.replace(char, safe)
    return text


def _latex_cells(text: str) -> str:
    """What LaTeX would stumble over in cells."""
    for char, safe in (("_", r"\_"), ("†", r"$^\dagger$"), ("‡", r"$^\ddagger$"), ("−", "--")):
        text = text.replace(char, safe)
    return text.replace("°", r"$^\circ$").replace("·", r"$\cdot$").replace("–", "--")
