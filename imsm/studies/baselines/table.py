"""The arms of one adapter in one table: a column per task, differences below the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from imsm.reporting.score_table import headline

if TYPE_CHECKING:
    from rich.console import Console

Entries = Mapping[str, Mapping[str, Any]]
"""Of a result, by task."""
_MEAN = "mean of\nforgetting"


def print_table(arms: Mapping[str, Entries], *, tuned: str, focus: Sequence[str], console: Console | None = None) -> None:
    """Print the arms; below a score stand its differences to two of them, in points.

    Args:
        arms: entries by the arm's name, "original" among them.
        tuned: the arm that is the adapter alone; differences are to it and to the original.
        focus: arms that are no control.
        console: where to; None: the terminal.
    """
    from rich.console import Console as RichConsole
    from rich.table import Table

    tasks = arms[tuned]
    forgetting = [name for name, entry in tasks.items() if not entry["trained_on"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for name, entry in tasks.items():
        mark = " *" if entry["role"] == "target" else ""
        table.add_column(f"{name}{mark}\n{headline(entry)}", justify="right", no_wrap=True)
    if len(forgetting) > 1:
        table.add_column(_MEAN, justify="right", no_wrap=True)
    for arm in arms:
        cells = [_cell(arms, arm, [name], tuned) for name in tasks]
        if len(forgetting) > 1:
            cells.append(_cell(arms, arm, forgetting, tuned))
        table.add_row(arm, *cells, style="bold" if arm in focus else None)
    console = console or RichConsole()
    if not console.is_terminal:
        console.width = max(console.width, 40 + 16 * (len(tasks) + 1))
    console.print(table)
    console.print(
        f"* target; in points; below: the difference to {tuned}, to the original; no interval: "
        "differences of a few items are chance",
        style="dim",
    )


def _cell(arms: Mapping[str, Entries], arm: str, tasks: Sequence[str], tuned: str) -> str:
    own = _points(arms[arm], tasks, like=arms[tuned])
    if own is None:
        return "-"
    told = []
    for other in (tuned, "original"):
        value = None if other == arm else _points(arms[other], tasks, like=arms[tuned])
        told.append("·" if value is None else f"{own - value:+.1f}")
    return f"{own:.1f}\n{told[0]:>6}{told[1]:>7}"


def _points(entries: Entries, tasks: Sequence[str], *, like: Entries) -> float | None:
    """The mean headline of some tasks; None where other items were asked."""
    values = []
    for task in tasks:
        entry = entries.get(task)
        if entry is None or entry["test_set"] != like[task]["test_set"]:
            return None
        values.append(float(entry["metrics"][headline(like[task])]))
    return fmean(values)
