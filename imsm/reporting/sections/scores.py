"""Sections: scores with differences, confidence intervals, and all metrics by protocol."""

from collections.abc import Mapping

from imsm.reporting.figures.report import draw_scores
from imsm.reporting.render.document import ReportFigure, Section
from imsm.reporting.render.formatting import MISSING, format_interval, format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun

Scores = Mapping[str, float | None]
"""A score by the label of its run."""


def build_overview(data: ReportData) -> Section:
    """Build the section with headline scores and differences from the original and PEFT."""
    rows, terminal_rows = [], []
    for name, metric, examples, scores in _lines(data):
        rows.append([name, metric, examples, *_score_cells(data, scores)])
        terminal_rows += _terminal_rows(data, name, metric, examples, scores)
    references = dict.fromkeys(reference.label for _, reference in data.pairs)
    terminal_columns = ["task", "metric", "run", "points", *(f"to {reference}" for reference in references)]
    return Section(
        name="overview",
        title="Overview",
        paragraphs=["Scores in points, and differences from the original and from PEFT."],
        table=Table(columns=["task", "metric", "examples", *_score_columns(data)], rows=rows, text_columns=2),
        # every line ends with an empty row as a separator, which the last one does not need
        terminal_table=Table(columns=terminal_columns, rows=terminal_rows[:-1], text_columns=3),
        notes=_notes(data) + _contamination(data),
    )


def build_scores(data: ReportData) -> Section | None:
    """Build the section with scores and intervals, or None without predictions."""
    if not data.score_intervals:
        return None
    text = (
        "Scores in points with 95 % bootstrap intervals over examples, resampled by passage where examples share one. "
        "The intervals cover the choice of examples, not of the training seed. If all answers are correct or all are "
        "wrong, a bootstrap interval has zero width, and Wilson's interval is shown."
    )
    records = []
    for task in data.tasks:
        found = {run.label: data.score_intervals.get((task, run.label)) for run in data.runs}
        cells = {k: MISSING if i is None else format_interval(i.estimate, i.low, i.high) for k, i in found.items()}
        records.append({"task": data.name(task), "metric": data.metrics[task], **cells})
    figure = ReportFigure(
        name="scores", alt="Scores of all runs by task with 95 % intervals", draw=lambda: draw_scores(data)
    )
    return Section(
        name="scores",
        title="Scores with confidence intervals",
        paragraphs=[text],
        table=Table.from_records(records, text_columns=2),
        figures=[figure],
    )


def build_protocols(data: ReportData) -> Section | None:
    """Build the section with every metric of every protocol, or None without metrics."""
    text = (
        "Scores in points, with differences. Metrics of the protocol paper_code are comparable with the published "
        "numbers and are never mixed with strict ones."
    )
    rows = []
    for task in data.tasks:
        for protocol, metrics in _metrics_by_protocol(data.focus, task).items():
            for metric in metrics:
                scores = {
                    run.label: _metrics_by_protocol(run, task).get(protocol, {}).get(metric) for run in data.runs
                }
                rows.append([data.name(task), protocol, metric, *_score_cells(data, scores)])
    if not rows:
        return None
    return Section(
        name="protocols",
        title="All metrics by protocol",
        paragraphs=[text],
        table=Table(columns=["task", "protocol", "metric", *_score_columns(data)], rows=rows, text_columns=3),
    )


def _score_columns(data: ReportData) -> list[str]:
    """Return the column names of `_score_cells`."""
    return [*(run.label for run in data.runs), *(f"{run.label} − {other.label}" for run, other in _pairs(data))]


def _score_cells(data: ReportData, scores: Scores) -> list[str]:
    """Return each run's score, then the differences from original and PEFT."""
    differences = [_difference(scores, run, other) for run, other in _pairs(data)]
    own = [format_number(scores[run.label]) for run in data.runs]
    return own + [format_number(value, signed=True) for value in differences]


def _pairs(data: ReportData) -> list[tuple[ComparedRun, ComparedRun]]:
    # the sort is stable: within each reference, pairs keep the order of the runs
    return sorted(data.pairs, key=lambda pair: pair[1].method != "original")


def _difference(scores: Scores, run: ComparedRun, reference: ComparedRun) -> float | None:
    one, other = scores[run.label], scores[reference.label]
    return None if one is None or other is None else one - other


def _lines(data: ReportData) -> list[tuple[str, str, str, Scores]]:
    """Return name, metric, examples and scores of each task and the average."""
    lines: list[tuple[str, str, str, Scores]] = []
    for task in data.tasks:
        examples = str(data.focus.task_result(task)["num_examples"])
        scores = {run.label: data.mean(run, [task]) for run in data.runs}
        lines.append((data.name(task), data.metrics[task], examples, scores))
    if len(data.informative) > 1:
        scores = {run.label: data.mean(run, data.informative) for run in data.runs}
        lines.append(("average", f"{len(data.informative)} forgetting tests", "", scores))
    return lines


def _terminal_rows(data: ReportData, name: str, metric: str, examples: str, scores: Scores) -> list[list[str]]:
    """Return one row for each run, which fits into 80 columns, and an empty row."""
    references = dict.fromkeys(reference.label for _, reference in data.pairs)
    differences = {(run.label, other.label): _difference(scores, run, other) for run, other in data.pairs}
    # task, metric and count share the first columns of a task's rows; the original alone has one row
    heads = [(name, metric), ("", f"{examples} examples" if examples else "")]
    if len(data.runs) == 1 and examples:
        heads = [(name, f"{metric}, {examples} examples")]
    rows = []
    for index, run in enumerate(data.runs):
        found = [differences.get((run.label, reference)) for reference in references]
        # empty, not a dash: a run has no difference from itself
        cells = ["" if value is None else format_number(value, signed=True) for value in found]
        head = heads[index] if index < len(heads) else ("", "")
        rows.append([*head, run.label, format_number(scores[run.label]), *cells])
    return [*rows, [""] * len(rows[0])]


def _notes(data: ReportData) -> list[str]:
    notes = [f"The average is over {', '.join(data.informative)}."] if len(data.informative) > 1 else []
    if data.at_chance:
        notes.append(
            f"The original is at chance on {' and '.join(data.at_chance)}: these scores cannot show forgetting, "
            "and averages leave them out."
        )
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
            # the result lists only the first ids
            more = found["count"] - len(found["ids"])
            rest = f" and {more} more" if more > 0 else ""
            ids = ", ".join(found["ids"])
            notes.append(f"{found['count']} test examples of {task} also occur in the training data: {ids}{rest}.")
    return notes


def _metrics_by_protocol(run: ComparedRun, task: str) -> dict[str, dict[str, float]]:
    entry = run.task_result(task)
    found = {protocol: result["metrics"] for protocol, result in entry.get("protocols", {}).items()}
    # a result that was evaluated under one protocol only has no `protocols`
    return found or {entry.get("protocol", "strict"): entry.get("metrics", {})}
