"""Section: headline scores and their differences from the original and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun

Score = Callable[[ComparedRun], float | None]


def build(data: ReportData) -> Section | None:
    """Build the section."""
    columns = ["task", "metric", "examples", *score_columns(data)]
    rows, terminal_rows = [], []
    for name, metric, examples, score in _lines(data):
        rows.append([name, metric, examples, *score_cells(data, score)])
        terminal_rows += _terminal_rows(data, name, metric, examples, score)
    references = dict.fromkeys(reference.label for _, reference in data.pairs)
    terminal_columns = ["task", "metric", "run", "points", *(f"to {reference}" for reference in references)]
    return Section(
        name="overview",
        title="Overview",
        paragraphs=["Scores in points, and differences from the original and from PEFT."],
        table=Table(columns=columns, rows=rows, text_columns=2),
        terminal_table=Table(columns=terminal_columns, rows=terminal_rows[:-1], text_columns=3),
        notes=_notes(data) + _contamination(data),
    )


def score_columns(data: ReportData) -> list[str]:
    """Return the column names of `score_cells`."""
    return [*(run.label for run in data.runs), *(f"{run.label} − {other.label}" for run, other in _pairs(data))]


def score_cells(data: ReportData, score: Score) -> list[str]:
    """Return each run's score, then the differences from original and PEFT."""
    differences = [_difference(score(run), score(other)) for run, other in _pairs(data)]
    return [*(format_number(score(run)) for run in data.runs), *(format_number(d, signed=True) for d in differences)]


def _pairs(data: ReportData) -> list[tuple[ComparedRun, ComparedRun]]:
    return sorted(data.pairs, key=lambda pair: pair[1].method != "original")


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(data: ReportData, tasks: Sequence[str], run: ComparedRun) -> float | None:
    return data.mean(run, tasks)


def _lines(data: ReportData) -> list[tuple[str, str, str, Score]]:
    """Return name, metric, examples and scores of each task and the average."""
    lines: list[tuple[str, str, str, Score]] = []
    for task in data.tasks:
        examples = str(data.focus.task_result(task)["num_examples"])
        lines.append((data.name(task), data.metrics[task], examples, partial(_mean, data, [task])))
    if len(data.forgetting) > 1:
        metric = f"{len(data.forgetting)} forgetting tests"
        lines.append(("average", metric, "", partial(_mean, data, data.forgetting)))
    return lines


def _terminal_rows(data: ReportData, name: str, metric: str, examples: str, score: Score) -> list[list[str]]:
    """Return one row for each run, which fits into 80 columns, and an empty row."""
    references = list(dict.fromkeys(reference.label for _, reference in data.pairs))
    differences = {(run.label, other.label): _difference(score(run), score(other)) for run, other in data.pairs}
    heads = [(name, metric), ("", f"{examples} examples" if examples else "")]
    if len(data.runs) == 1 and examples:
        heads = [(name, f"{metric}, {examples} examples")]
    rows = []
    for index, run in enumerate(data.runs):
        found = [differences.get((run.label, reference)) for reference in references]
        cells = ["" if value is None else format_number(value, signed=True) for value in found]
        rows.append(
            [*(heads[index] if index < len(heads) else ("", "")), run.label, format_number(score(run)), *cells]
        )
    return [*rows, [""] * len(rows[0])]


def _notes(data: ReportData) -> list[str]:
    notes = [f"The average is over {', '.join(data.forgetting)}."] if len(data.forgetting) > 1 else []
    notes += [
        f"† {task}: a compared run was trained on this task; no average of forgetting tests includes it."
        for task in data.tasks
        if task in data.marked
    ]
    if data.common != data.tasks:
        notes.append("– not evaluated, or evaluated on other examples.")
    return notes


def _contamination(data: ReportData) -> list[str]:
    """Return a note for each task whose test examples also occur in the training data."""
    notes = []
    for task in data.focus.result["evaluation"]["tasks"]:
        found = data.focus.task_result(task).get("contamination") or {"count": 0}
        if found["count"]:
            more = found["count"] - len(found["ids"])
            rest = f" and {more} more" if more > 0 else ""
            ids = ", ".join(found["ids"])
            notes.append(f"{found['count']} test examples of {task} also occur in the training data: {ids}{rest}.")
    return notes
