"""Print a table and write its files."""

from pathlib import Path

from rich.console import Console

from imsm.reporting.render.table import print_table
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import PaperTable
from imsm.studies.paper.speed import read_speed, speed_table
from imsm.studies.paper.table import FILES, build_table, missing_line, write_table
from imsm.utils.control_characters import escape_controls


def show_table(
    table: PaperTable,
    runs: RunIndex,
    *,
    scale: str,
    seeds: int,
    protocol: str,
    folder: Path,
    console: Console | None = None,
) -> None:
    """Print a table and write it, and its bar chart, to ``folder``.

    The paper_code protocol has its own subfolder and does not overwrite the strict one.

    Raises:
        OSError: The folder cannot be written.
    """
    console = console or Console()
    console.print()
    if table.spec.kind == "speed":
        _show_speed(table, scale=scale, folder=folder, console=console)
        return
    if protocol != "strict":
        folder = folder / protocol
    filled = build_table(table, runs, scale=scale, seeds=seeds, protocol=protocol)
    print_table(filled.text, console)
    for run in filled.missing:
        _print_line(console, f"missing: {missing_line(run)}")
    write_table(filled.text, folder, missing=filled.missing)
    files = FILES
    if table.spec.kind == "bars":
        from imsm.studies.paper.bar_chart import draw_bars, write_bars  # matplotlib is slow to import

        write_bars(draw_bars(table, filled), folder)
        files += ", figure.png, figure.svg"
    _print_line(console, f"written: {folder} ({files})")


def _show_speed(table: PaperTable, *, scale: str, folder: Path, console: Console) -> None:
    measured = read_speed(folder)
    if measured is None:
        _print_line(console, f"{table.name}: not measured yet: imsm paper run {table.name} --scale {scale}")
        return
    text = speed_table(table, measured, scale=scale)
    print_table(text, console)
    write_table(text, folder)
    _print_line(console, f"written: {folder} ({FILES})")


def show_status(
    table: PaperTable, runs: RunIndex, *, scale: str, seeds: int, folder: Path, console: Console | None = None
) -> None:
    """List the runs of a table as done, missing or failed, with the commands of unfinished ones."""
    console = console or Console()
    if table.spec.kind == "speed":
        _print_line(console, f"{table.name} ({scale}): {'missing' if read_speed(folder) is None else 'done'}")
        return
    required = required_runs(table, runs, scale=scale, seeds=seeds)
    counts = [f"{sum(r.state == state for r in required)} {state}" for state in ("done", "missing", "failed")]
    _print_line(console, f"{table.name} ({scale}): {', '.join(counts)}")
    for run in required:
        _print_line(console, f"  {run.state:8}{run.name}")
        if run.state != "done":
            failure = f"{run.failure}: " if run.failure else ""
            _print_line(console, f"          {failure}{run.command}", style="dim")


def _print_line(console: Console, text: str, *, style: str | None = None) -> None:
    # Commands and paths must stay copyable: rich would wrap them and read [..] as markup.
    console.print(escape_controls(text), style=style, soft_wrap=True, highlight=False, markup=False)
