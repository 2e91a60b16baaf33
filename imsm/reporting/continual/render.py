"""Tables of a task sequence: scores after each stage, and the measures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas
from rich.console import Console

from imsm.evaluation.statistics.continual import MEASURES
from imsm.reporting.continual.record import Record
from imsm.reporting.render.formatting import MISSING, format_interval, format_number
from imsm.reporting.render.table import Table, print_notes, print_table
from imsm.utils.control_characters import escape_controls

Measures = Mapping[str, Mapping[str, float]]


def score_frame(record: Record) -> pandas.DataFrame:
    """Return scores in points: the original and each stage by task."""
    return pandas.DataFrame(
        record["scores"],
        index=pandas.Index(row_names(record), name="after"),
        columns=[task["name"] for task in record["tasks"]],
    )


def row_names(record: Record) -> list[str]:
    """Return "original", then each stage's number and task, e.g. "1 gsm8k"."""
    return ["original", *(f"{number} {name}" for number, name in enumerate(record["task_sequence"], start=1))]


def column_name(task: Mapping[str, Any]) -> tuple[str, str]:
    """Return a task's name and its metric without underscores."""
    name, metric = str(task["name"]), str(task["metric"])
    return name, metric.removeprefix(f"{name}_").replace("_", " ")


def build_tables(records: Sequence[Record], differences: Measures) -> list[Table]:
    """Return tables of scores, measures, and differences from PEFT."""
    methods = [str(record["method"]) for record in records]
    tables = [_score_table(record) for record in records]
    tables.append(Table(caption="Measures", columns=["measure", *methods], rows=_measure_rows(records)))
    if differences:
        # the last one, as in the differences themselves
        method = next(name for name in reversed(methods) if name != "peft")
        rows = [[name, _value(entry, signed=True)] for name, entry in differences.items()]
        tables.append(Table(caption="Differences", columns=["measure", f"{method} − peft"], rows=rows))
    return tables


def render_markdown(records: Sequence[Record], differences: Measures) -> str:
    """Return the tables as Markdown."""
    blocks = [f"# Task sequence: {', then '.join(records[0]['task_sequence'])}"]
    for table in build_tables(records, differences):
        blocks += [f"## {table.caption}", table.to_markdown()]
    blocks += ["![Scores by stage and task](sequence.png)", *_notes(records)]
    return escape_controls("\n\n".join(blocks) + "\n")


def render_terminal(records: Sequence[Record], differences: Measures, *, console: Console | None = None) -> None:
    """Print the tables."""
    console = console or Console()
    for table in build_tables(records, differences):
        print_table(table, console)
    print_notes(_notes(records), console)


def _score_table(record: Record) -> Table:
    rows = []
    for stage, (name, scores) in enumerate(zip(row_names(record), record["scores"], strict=True)):
        # row 0 is the original, so the row's number is that of the stage
        learned = ["*" if task["stage"] and task["stage"] <= stage else "" for task in record["tasks"]]
        cells = [v if v == MISSING else v + mark for v, mark in zip(map(format_number, scores), learned, strict=True)]
        rows.append([name, *cells])
    return Table(
        caption=f"{record['method']}: scores after each stage",
        columns=["after", *(" ".join(column_name(task)) for task in record["tasks"])],
        rows=rows,
    )


def _measure_rows(records: Sequence[Record]) -> list[list[str]]:
    """Return one row per measure with each method's value and interval."""
    names = [(f"{short}, {long}", "measures", short) for short, long in MEASURES.items()]
    names += [(f"FM of {name}", "forgetting", name) for name in records[0]["task_sequence"][:-1]]
    return [[title, *(_value(record[part].get(key)) for record in records)] for title, part, key in names]


def _notes(records: Sequence[Record]) -> list[str]:
    """Return the explanation of the tables."""
    lines = [
        f"Scores in points. One adapter was trained on {', then '.join(records[0]['task_sequence'])}; each row is the "
        "model after that stage. * learned at this stage or before; no average of forgetting tests includes it.",
        "BWT: final score of the earlier tasks minus their score right after they were learned. FM: their best score "
        "at any stage before the last, minus the final score. OP: final score of all tasks. FWT: score of each later "
        "task right before it is learned, minus the original's. DG: final score of tasks that no stage learns, minus "
        "the original's.",
    ]
    if any("low" in record["measures"].get("BWT", {}) for record in records):
        lines.append(
            "Brackets: 95 % bootstrap intervals over the examples of each task (clustered by passage), with the same "
            "draws for all stages and methods. They are of one seed and exclude the variance of training. FM takes a "
            "maximum, so noise alone makes it positive."
        )
    if any(not record["measures"] for record in records):
        lines.append(f"{MISSING} not evaluated on the same examples at every stage; run the sequence again.")
    return lines


def _value(entry: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if not entry:
        return MISSING
    if "low" in entry:
        return format_interval(entry["value"], entry["low"], entry["high"], signed=signed)
    return format_number(entry["value"], signed=signed)
