"""Print baselines in one table: a column per task, differences below the scores."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console

from imsm.reporting.render.table import Table
from imsm.reporting.render.table import print_table as print_text_table
from imsm.reporting.runs import headline

TaskResults = Mapping[str, Mapping[str, Any]]
"""`evaluation.tasks` of a result."""


def print_table(
    runs: Mapping[str, TaskResults], *, tuned: str, focus: Sequence[str], console: Console | None = None
) -> None:
    """Print scores in points, with differences to the adapter alone and to the original below them.

    ``runs`` are task results by run, "original" and the adapter alone (``tuned``) among them; the runs of
    ``focus`` are printed in bold.
    """
    tasks = runs[tuned]
    columns = {
        f"{name}{' *' if entry['role'] == 'target' else ''}\n{headline(entry)}": [name]
        for name, entry in tasks.items()
    }
    forgetting = [name for name, entry in tasks.items() if not entry["trained_on"]]
    if len(forgetting) > 1:
        columns["mean of\nforgetting"] = forgetting
    table = Table(
        columns=["run", *columns],
        rows=[[run, *(_cell(runs, run, names, tuned) for names in columns.values())] for run in runs],
        bold_rows=[index for index, run in enumerate(runs) if run in focus],
        notes=[
            f"* target; in points; below: the difference to {tuned}, to the original; without intervals: "
            "differences of a few examples are chance"
        ],
    )
    print_text_table(table, console or Console())


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
