"""Print baselines in one table: a column per task, differences below the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from imsm.reporting.runs import headline

TaskResults = Mapping[str, Mapping[str, Any]]
"""`evaluation.tasks` of a result."""
_MEAN = "mean of\nforgetting"


def print_table(
    runs: Mapping[str, TaskResults], *, tuned: str, focus: Sequence[str], console: Console | None = None
) -> None:
    """Print scores in points, with differences to the adapter alone and to the original below them.

    Args:
        runs: Task results by run, "original" among them.
        tuned: Name of the run that is the adapter alone.
        focus: Names of the runs that are not baselines, printed in bold.
        console: Output; None: the terminal.
    """
    tasks = runs[tuned]
    forgetting = [name for name, entry in tasks.items() if not entry["trained_on"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for name, entry in tasks.items():
        mark = " *" if entry["role"] == "target" else ""
        table.add_column(f"{name}{mark}\n{headline(entry)}", justify="right", no_wrap=True)
    columns = [[name] for name in tasks]
    if len(forgetting) > 1:
        table.add_column(_MEAN, justify="right", no_wrap=True)
        columns.append(forgetting)
    for run in runs:
        cells = [_cell(runs, run, column, tuned) for column in columns]
        table.add_row(run, *cells, style="bold" if run in focus else None)
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 40 + 16 * (len(tasks) + 1))
    console.print(table)
    console.print(
        f"* target; in points; below: the difference to {tuned}, to the original; without intervals: "
        "differences of a few examples are chance",
        style="dim",
    )


def _cell(runs: Mapping[str, TaskResults], run: str, tasks: Sequence[str], tuned: str) -> str:
    score = _mean_score(runs[run], tasks, like=runs[tuned])
    if score is None:
        return "-"
    differences = []
    for other in (tuned, "original"):
        value = None if other == run else _mean_score(runs[other], tasks, like=runs[tuned])
        differences.append("·" if value is None else f"{score - value:+.1f}")
    return f"{score:.1f}\n{differences[0]:>6}{differences[1]:>7}"


def _mean_score(entries: TaskResults, tasks: Sequence[str], *, like: TaskResults) -> float | None:
    """Return the mean headline score; None if a task is missing or was evaluated on other examples."""
    scores = []
    for task in tasks:
        entry = entries.get(task)
        if entry is None or entry["test_set"] != like[task]["test_set"]:
            return None
        scores.append(float(entry["metrics"][headline(like[task])]))
    return fmean(scores)
