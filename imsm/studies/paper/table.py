"""Build a table: our scores with intervals, the paper's numbers below them, and the missing runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imsm.evaluation.statistics.intervals import Interval
from imsm.reporting.render.escaping import markdown_text
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import baselines_as_good
from imsm.studies.paper.cells import ALPHA, CellBuilder, TableCell, adjust, row_average
from imsm.studies.paper.runs import RunIndex, RunRef, required_runs
from imsm.studies.paper.spec import ColumnSpec, PaperTable, RowSpec, TableSpec
from imsm.utils.control_characters import escape_controls
from imsm.utils.files import write_atomic

FILES = "table.md, table.csv, table.tex"
Cells = Mapping[str, TableCell]


@dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table as text with its cells by row and column, and the missing runs."""

    text: Table
    cells: Sequence[tuple[RowSpec, Cells]]
    missing: Sequence[RunRef]


def build_table(table: PaperTable, runs: RunIndex, *, scale: str, seeds: int, protocol: str) -> FilledTable:
    """Fill a table from finished runs; the settings are those of `CellBuilder`."""
    spec = table.spec
    builder = CellBuilder(table=table, runs=runs, scale=scale, seeds=seeds, protocol=protocol)

    def cell_key(row: RowSpec, column: ColumnSpec) -> tuple[object, ...]:
        pair = (row, table.reference_of(row))
        return (column.name, *(r and table.overrides(r, column, scale=scale, seed=0) for r in pair))

    # at the miniature's scale several rows have the same runs, which are built and tested once
    distinct = {cell_key(row, column): (row, column) for row in table.rows for column in table.columns_of(row)}
    built = adjust({key: builder.build(*pair) for key, pair in distinct.items()})
    cells = [
        (row, {column.name: built[cell_key(row, column)] for column in table.columns_of(row)}) for row in table.rows
    ]
    records = _records(cells, spec, builder)
    ours_are = "ours: the miniature in every row" if scale == "mini" else "ours: the paper's models"
    required = required_runs(table, runs, scale=scale, seeds=seeds)
    over = "seed 0" if seeds == 1 else f"{seeds} seeds"
    return FilledTable(
        text=Table(
            columns=list(records[0]),
            rows=[list(record.values()) for record in records],
            text_columns=len(spec.keys) + 1,
            caption=f"{spec.title} · {ours_are} · {over} · {protocol} protocol",
            notes=[*_notes(cells, spec, scale=scale, seeds=seeds), *_baseline_notes(required, runs)],
        ),
        cells=cells,
        missing=[run for run in required if not run.result],
    )


def _records(cells: Sequence[tuple[RowSpec, Cells]], spec: TableSpec, builder: CellBuilder) -> list[dict[str, str]]:
    """Return our rows and the paper's as text by column."""
    with_counts = any("params_millions" in row.paper for row, _ in cells)
    records = []
    for row, row_cells in cells:
        ours = {key: value or "–" for key, value in row.values.items()} | {"whose": "ours"}
        if builder.scale == "mini" and row.values.get("backbone"):
            ours["backbone"] = f"mini (for {row.values['backbone']})"
        paper = dict.fromkeys(row.values, "") | {"whose": f"paper ({row.values.get('backbone') or 'its model'})"}
        for column in spec.columns:
            ours[column.name] = _format_cell(row_cells[column.name]) if column.name in row_cells else ""
            paper[column.name] = row.paper.get(column.name) or "–"
        for name, columns in spec.averages.items():
            average = row_average(row_cells, columns)
            ours[name] = "–" if average is None else _format_interval(average)
            paper[name] = row.paper.get(name) or "–"
        if with_counts:
            millions, paper_millions = builder.trainable_millions(row), row.paper.get("params_millions")
            ours["parameters"] = "–" if millions is None else f"{millions:.3f} M"
            paper["parameters"] = f"{paper_millions} M" if paper_millions else "–"
        records.append(ours)
        if any(value not in ("", "–") for name, value in paper.items() if name in row_cells):
            records.append(paper)
    return records


def _baseline_notes(required: Sequence[RunRef], runs: RunIndex) -> list[str]:
    """Return a note with the number of interwoven runs that training-free baselines match; empty without any."""
    found = [
        names
        for run in required
        if run.result is not None and run.result["identity"]["method"]["stream"] == "interwoven"
        if (names := baselines_as_good(run.folder, run.result, runs_root=runs.runs_root)) is not None
    ]
    matched = [names for names in found if names]
    if not matched:
        return []
    listed = ", ".join(dict.fromkeys(name for names in matched for name in names))
    return [
        f"Training-free baselines match IMSM in {len(matched)} of the {len(found)} runs that they were evaluated for "
        f"(`imsm baselines RUN`): {listed} retain at least as much at no lower target score."
    ]


def write_table(table: Table, folder: Path, *, missing: Sequence[RunRef] = ()) -> None:
    """Write a table as Markdown (with notes and the commands of missing runs), CSV and LaTeX.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paragraphs = [f"# {markdown_text(table.caption)}", table.to_markdown(), *map(markdown_text, table.notes)]
    if missing:
        paragraphs += ["## Missing", "\n".join(f"- {markdown_text(missing_line(run))}" for run in missing)]
    write_atomic(folder / "table.md", escape_controls("\n\n".join(paragraphs) + "\n"))
    write_atomic(folder / "table.csv", table.to_csv())
    write_atomic(folder / "table.tex", table.to_latex())


def missing_line(run: RunRef) -> str:
    """Return the command of a missing run, and why it failed."""
    return f"failed ({run.failure}): `{run.command}`" if run.state == "failed" else f"`{run.command}`"


def _format_cell(cell: TableCell) -> str:
    if cell.interval is None:
        failed = any(run.state == "failed" for run in cell.missing)
        return "failed" if failed else "missing" if cell.missing else "–"
    return _format_interval(cell.interval, marks=("*" if cell.differs else "") + ("†" if cell.trained_on else ""))


def _format_interval(interval: Interval, *, marks: str = "") -> str:
    bounds = f" [{interval.low:.1f}, {interval.high:.1f}]" if interval.low < interval.high else ""
    return f"{interval.estimate:.1f}{marks}{bounds}".replace("-", "−")


def _notes(cells: Sequence[tuple[RowSpec, Cells]], spec: TableSpec, *, scale: str, seeds: int) -> list[str]:
    every = [cell for _, row_cells in cells for cell in row_cells.values()]
    notes = []
    if scale == "mini" and any(row.paper for row, _ in cells):
        notes.append(
            "The paper's numbers are from other models and other, much larger datasets; they are listed for "
            "reference and must not be compared with ours."
        )
    intervals = (
        "bootstrap over examples (complete passages); of an average, as if all scores on one evaluation set were "
        "fully correlated; variation between seeds is not included"
        if seeds == 1
        else "over seeds and examples (F1, correlations and averages: Student's t over seeds)"
    )
    notes.append(f"[low, high]: 95 % interval, {intervals}.")
    if seeds == 1:
        notes.append(
            "Differences are not marked as significant: one seed does not show how much trainings vary. Several seeds "
            "(`--seeds 5`) are tested."
        )
    elif any(cell.differs for cell in every):
        reference = ", ".join(f"{key} = {value}" for key, value in spec.reference.items())
        notes.append(
            f"* differs from the row with {reference}: Student's t-test over seeds, the paper's test, p < {ALPHA} "
            "after Holm's correction over all tests of the table."
        )
    if any(cell.trained_on for cell in every):
        notes.append("† the run was also trained on this task, which is excluded from averages.")
    return notes + ([f"The paper: {spec.paper_text}"] if spec.paper_text else [])
