"""An experiment on the terminal and in its files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from imsm.experiments.grid import Experiment
from imsm.experiments.runs import Runs, runs_of
from imsm.experiments.table import build_table, waiting_line, write_table
from imsm.report.card import plain_table


def show(
    experiment: Experiment,
    runs: Runs,
    *,
    scale: str,
    seeds: int,
    protocol: str,
    place: Path,
    console: Console | None = None,
) -> None:
    """Print an experiment's table, and write it (and its picture) into ``place``.

    Raises:
        OSError: the folder cannot be written.
    """
    console = console or Console()
    table = build_table(experiment, runs, scale=scale, seeds=seeds, protocol=protocol)
    console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
    shown = plain_table([str(name) for name in table.frame], text=table.numbers)
    for cells in table.frame.to_numpy():
        shown.add_row(*(escape(str(cell)) for cell in cells))
    whole = console.measure(shown, options=console.options.update(max_width=1000)).maximum
    console.width = max(whole, console.width)  # a name that is cut says nothing
    console.print(shown, crop=False)
    for note in table.notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True, markup=False)
    for run in table.waiting:
        console.print(
            f"missing: {waiting_line(run)}", soft_wrap=True, highlight=False, markup=False
        )
    write_table(table, place)
    files = "table.md, table.csv, table.tex"
    if experiment.grid.kind == "bars":
        from imsm.experiments.bars import draw_bars, write_bars

        write_bars(draw_bars(experiment, table), place)
        files += ", figure.png, figure.svg"
    console.print(f"written: {place} ({files})", soft_wrap=True, highlight=False, markup=False)


def show_status(
    experiment: Experiment,
    runs: Runs,
    *,
    scale: str,
    seeds: int,
    console: Console | None = None,
) -> None:
    """List an experiment's runs: done, missing, failed, each that is not done with its command."""
    console = console or Console()
    found = runs_of(experiment, runs, scale=scale, seeds=seeds)
    counts = {
        state: sum(r.state == state for r in found) for state in ("done", "missing", "failed")
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{experiment.name} ({scale}): {told}", highlight=False, markup=False)
    for run in found:
        line = f"  {run.state:8}{run.name}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        if run.state != "done":
            said = f"{run.failure}: " if run.failure else ""
            console.print(
                f"          {said}{run.command}", soft_wrap=True, markup=False, style="dim"
            )
