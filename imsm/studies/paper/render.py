"""An experiment on the terminal and in its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from imsm.reporting.render.table import plain_table
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import PaperTable
from imsm.studies.paper.speed import read_speed, speed_table
from imsm.studies.paper.table import RenderedTable, build_table, missing_line, write_table

if TYPE_CHECKING:
    import pandas


def show_table(
    experiment: PaperTable,
    runs: RunIndex,
    *,
    scale: str,
    seeds: int,
    protocol: str,
    folder: Path,
    console: Console | None = None,
) -> None:
    """Print an experiment's table, and write it (and its picture) into ``place``.

    The released protocol's lies in a folder of its own there: it replaces no clean one.

    Raises:
        OSError: the folder cannot be written.
    """
    console = console or Console()
    if experiment.spec.kind == "speed":
        _show_speed(experiment, scale=scale, place=folder, console=console)
        return
    if protocol != "strict":
        folder = folder / protocol
    table = build_table(experiment, runs, scale=scale, seeds=seeds, protocol=protocol)
    _print_frame(console, table.title, table.frame, table.numbers)
    for note in table.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    for run in table.missing:
        console.print(f"missing: {missing_line(run)}", soft_wrap=True, highlight=False, markup=False)
    write_table(table, folder)
    files = "table.md, table.csv, table.tex"
    if experiment.spec.kind == "bars":
        from imsm.studies.paper.bar_chart import draw_bars, write_bars

        write_bars(draw_bars(experiment, table), folder)
        files += ", figure.png, figure.svg"
    console.print(f"written: {folder} ({files})", soft_wrap=True, highlight=False, markup=False)


def _show_speed(experiment: PaperTable, *, scale: str, place: Path, console: Console) -> None:
    found = read_speed(place)
    if found is None:
        command = f"imsm paper run {experiment.name} --scale {scale}"
        console.print(f"\n{experiment.name}: not measured yet: {command}", markup=False)
        return
    frame, notes = speed_table(experiment, found, scale=scale)
    title = f"{experiment.spec.title} · {'ours: the miniature' if scale == 'mini' else 'paper'}"
    numbers = len(experiment.spec.keys)
    _print_frame(console, title, frame, numbers)
    table = RenderedTable(title=title, frame=frame, numbers=numbers, notes=notes, missing=[], cells=[])
    for note in notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    write_table(table, place)
    console.print(f"written: {place} (table.md, table.csv, table.tex)", soft_wrap=True, markup=False)


def _print_frame(console: Console, title: str, frame: pandas.DataFrame, numbers: int) -> None:
    console.print(f"\n{title}", style="bold", highlight=False, markup=False)
    shown = plain_table([str(name) for name in frame], text=numbers)
    for cells in frame.to_numpy():
        shown.add_row(*(escape(str(cell)) for cell in cells))
    whole = console.measure(shown, options=console.options.update(max_width=1000)).maximum
    console.width = max(whole, console.width)  # a name that is cut says nothing
    console.print(shown, crop=False)


def show_status(
    experiment: PaperTable, runs: RunIndex, *, scale: str, seeds: int, folder: Path, console: Console | None = None
) -> None:
    """List an experiment's runs: done, missing, failed, each that is not done with its command."""
    console = console or Console()
    if experiment.spec.kind == "speed":
        state = "missing" if read_speed(folder) is None else "done"
        console.print(f"{experiment.name} ({scale}): {state}", highlight=False, markup=False)
        return
    found = required_runs(experiment, runs, scale=scale, seeds=seeds)
    counts = {state: sum(r.state == state for r in found) for state in ("done", "missing", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{experiment.name} ({scale}): {told}", highlight=False, markup=False)
    for run in found:
        line = f"  {run.state:8}{run.name}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        if run.state != "done":
            said = f"{run.failure}: " if run.failure else ""
            console.print(f"          {said}{run.command}", soft_wrap=True, markup=False, style="dim")
