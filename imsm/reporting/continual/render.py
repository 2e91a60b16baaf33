"""A sequence's tables: what each stage scored on each task, and what that comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imsm.evaluation.statistics.continual import MEASURES

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

Record = Mapping[str, Any]
_MISSING = "–"


def score_frame(record: Record) -> pandas.DataFrame:
    """Scores in points: a row for the original and for each stage, a column per task."""
    import pandas

    return pandas.DataFrame(
        record["scores"],
        index=pandas.Index(row_names(record), name="after"),
        columns=[task["name"] for task in record["tasks"]],
    )


def row_names(record: Record) -> list[str]:
    """The original, then each stage by what it learned: "1 gsm8k", "2 mrpc"."""
    stages = [f"{number} {name}" for number, name in enumerate(record["task_sequence"], start=1)]
    return ["original", *stages]


def measure_rows(records: Sequence[Record]) -> list[list[str]]:
    """A row per measure: its name, then each arm's value and interval."""
    named = [(f"{short}, {long}", "measures", short) for short, long in MEASURES.items()]
    named += [(f"FM of {name}", "forgetting", name) for name in records[0]["task_sequence"][:-1]]
    return [[title, *(_value(record[part].get(key)) for record in records)] for title, part, key in named]


def difference_rows(differences: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A row per measure: another arm's value less PEFT's."""
    return [[f"{name}", _value(entry, signed=True)] for name, entry in differences.items()]


def notes(records: Sequence[Record], differences: Mapping[str, Any]) -> list[str]:
    """What to know to read the tables, a line each."""
    learned = ", then ".join(records[0]["task_sequence"])
    lines = [
        f"Points. One adapter learned {learned}; a row is the model after that stage. "
        "* learned at this stage or before, so it enters no average of forgetting tests.",
        "BWT: the earlier tasks at the end, less right after they were learned. FM: their best "
        "score of any stage before the last, less at the end. OP: all tasks at the end. FWT: each "
        "later task right before its turn, less the original. DG: tasks that no stage learns, at "
        "the end, less the original.",
    ]
    if any("low" in record["measures"].get("BWT", {}) for record in records):
        lines.append(
            "In brackets: 95 % bootstrap intervals over the items of each task (clustered by "
            "passage), stages and arms on the same draws; one seed, so the spread of training is "
            "not in them. FM takes a maximum, which noise alone makes larger than 0."
        )
    if any(not record["measures"] for record in records):
        lines.append(f"{_MISSING} a stage was not asked the same items: run the sequence again.")
    return lines


def render_markdown(records: Sequence[Record], differences: Mapping[str, Any]) -> str:
    """All arms' tables as Markdown."""
    from tabulate import tabulate

    parts = [f"# Learning {', then '.join(records[0]['sequence'])}\n"]
    for record in records:
        rows = [[name, *cells] for name, cells in zip(row_names(record), _cells(record), strict=True)]
        parts += [f"## {record['method']}\n", tabulate(rows, _titles(record), tablefmt="github"), ""]
    arms = [str(record["method"]) for record in records]
    rows = measure_rows(records)
    parts += ["## Measures\n", tabulate(rows, ["", *arms], tablefmt="github", stralign="left"), ""]
    if differences:
        table = tabulate(difference_rows(differences), ["", _difference_title(arms)], tablefmt="github")
        parts += [table, ""]
    parts += ["![Scores by stage and task](sequence.png)\n"]
    return "\n".join([*parts, *(f"{line}\n" for line in notes(records, differences))])


def render_terminal(
    records: Sequence[Record], differences: Mapping[str, Any], *, console: Console | None = None
) -> None:
    """Print all arms' tables."""
    from rich.console import Console as RichConsole
    from rich.table import Table

    console = console or RichConsole()
    for record in records:
        rows = [[name, *cells] for name, cells in zip(row_names(record), _cells(record), strict=True)]
        console.print(_table(f"{record['method']}: scores after each stage", _titles(record), rows))
    arms = [str(record["method"]) for record in records]
    table: Table = _table("what that comes to", ["", *arms], measure_rows(records))
    console.print(table)
    if differences:
        titles = ["", _difference_title(arms)]
        console.print(_table("", titles, difference_rows(differences)))
    for line in notes(records, differences):
        console.print(line, style="dim", highlight=False)


def heading(task: Mapping[str, Any]) -> tuple[str, str]:
    """A task's name and its metric, in words."""
    name, metric = str(task["name"]), str(task["metric"])
    return name, metric.removeprefix(f"{name}_").replace("_", " ")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _titles(record: Record) -> list[str]:
    return ["after", *(" ".join(heading(task)) for task in record["tasks"])]


def _cells(record: Record) -> list[list[str]]:
    return [
        [
            _MISSING if value is None else f"{value:.1f}{'*' if _learned(task, stage) else ''}"
            for task, value in zip(record["tasks"], row, strict=True)
        ]
        for stage, row in enumerate(record["scores"])
    ]


def _learned(task: Mapping[str, Any], stage: int) -> bool:
    return task["stage"] is not None and task["stage"] <= stage


def _difference_title(arms: Sequence[str]) -> str:
    return f"{next(arm for arm in reversed(arms) if arm != 'peft')} less peft"


def _value(entry: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if not entry:
        return _MISSING
    sign = "+" if signed else ""
    text = f"{entry['value']:{sign}.1f}"
    if "low" in entry:
        text += f" [{entry['low']:{sign}.1f}, {entry['high']:{sign}.1f}]"
    return text
