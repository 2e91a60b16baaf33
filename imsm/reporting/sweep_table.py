"""One table over the runs of a sweep: a row per run, a column per task, one table per target.

The original stands once on top, with its answers to the same items; a run that is missing or failed
stands with the command that makes it. Scores are in points. A cell whose data the run was trained
on is marked and enters no average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imsm.reporting.render.table import markdown_table, plain_table, points
from imsm.reporting.score_table import headline
from imsm.utils.formatting import format_duration

if TYPE_CHECKING:
    from rich.console import Console

Entry = Mapping[str, Any]
_ALIKE = ("test_set", "protocol")
"""What two judgements of a task have in common if their scores may stand in one column."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        swept: the values of the sweep's keys, e.g. {"peft": "lora", "method": "imsm"}.
        target: the name of its dataset.
        about: what else a title says of it by key, e.g. {"backbone": "mini", "seed": "0"}.
        command: shell command that runs it, e.g. `imsm run peft=lora`.
        result: as `result.json` keeps it; None if the run is not finished.
        failure: why it ended early, in one line; None if it did not.
    """

    swept: Mapping[str, str]
    target: str
    about: Mapping[str, str]
    command: str
    result: Mapping[str, Any] | None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """All runs with one target: cells as text; the first ``text`` columns are names.

    What is missing stands as its command, what failed as its error and its command.
    """

    title: str
    names: list[str]
    text: int
    rows: list[list[str]]
    missing: list[str]
    failed: list[tuple[str, str]]
    notes: list[str]


def sweep_tables(members: Sequence[SweepRun]) -> list[SweepTable]:
    """A table per target, in the order in which the targets come."""
    keys = [key for key in members[0].swept if len({m.swept.get(key) for m in members}) > 1]
    keys = keys or ["method"]
    targets = dict.fromkeys(member.target for member in members)
    return [_table([m for m in members if m.target == target], keys) for target in targets]


def render_terminal(tables: Sequence[SweepTable], *, console: Console | None = None) -> None:
    """Print the tables, and the commands of what is missing."""
    from rich.console import Console as RichConsole
    from rich.markup import escape

    console = console or RichConsole()
    for table in tables:
        console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
        shown = plain_table(table.names, text=table.text)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        whole = console.measure(shown, options=console.options.update(max_width=1000)).maximum
        console.width = max(whole, console.width)  # a name that is cut says nothing
        console.print(shown, crop=False)
        for line in (*table.notes, *_missing(table)):
            console.print(line, style="dim", highlight=False, soft_wrap=True, markup=False)


def render_markdown(tables: Sequence[SweepTable]) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for table in tables:
        lines += [f"## {table.title}", ""]
        lines += markdown_table(table.names, table.rows, text=table.text)
        lines += [line for note in (*table.notes, *_missing(table)) for line in ("", note)]
        lines.append("")
    return "\n".join(lines)


def _missing(table: SweepTable) -> list[str]:
    lines = []
    for error, command in table.failed:
        lines += [f"failed: {error}", f"  again: {command}"]
    return lines + [f"missing: {command}" for command in table.missing]


def _table(members: Sequence[SweepRun], keys: Sequence[str]) -> SweepTable:
    target = members[0].target
    original = next((found for m in members if (found := _original(m, target))), {})
    trained = [member for member in members if not _is_original(member)]
    answered = [original, *(_entries(member) for member in trained)]
    reference = next((found for found in answered if found), {})
    reference = {name: reference[name] for name in sorted(reference, key=lambda n: n != target)}
    learned = {n for found in answered for n in reference if found.get(n, {}).get("trained_on")}
    counted = [name for name in reference if name != target and name not in learned]
    first = ["original", *[""] * (len(keys) - 1)]
    rows = [[*first, *_cells(original, reference, target, counted), "", ""]]
    for member, found in zip(trained, answered[1:], strict=True):
        cells = _cells(found, reference, target, counted)
        rows.append([*(member.swept.get(key, "–") for key in keys), *cells, *_cost(member)])
    scored = ", ".join(f"{name} {headline(reference[name])}" for name in reference)
    notes = [f"metrics: {scored}."] if scored else []
    notes += [f"kept: the mean of {', '.join(counted)}."] if counted else []
    if any("†" in cell for row in rows for cell in row):
        notes.append("† the run was trained on this task too; it is left out of every mean.")
    if any("–" in row for row in rows):
        notes.append("– not judged, or judged on other items or by another protocol.")
    others = sorted({entry.get("protocol", "strict") for entry in reference.values()} - {"strict"})
    notes += [f"judged by the protocol {name}." for name in others]
    about = [value for key, value in members[0].about.items() if key not in keys]
    return SweepTable(
        title=" · ".join([f"trained on {target}", *about]),
        names=[*keys, *reference, "kept", "parameters", "training"],
        text=len(keys),
        rows=rows,
        missing=[m.command for m in members if m.result is None and m.failure is None],
        failed=[(m.failure, m.command) for m in members if m.failure is not None],
        notes=notes,
    )


def _is_original(member: SweepRun) -> bool:
    return member.swept.get("method") == "original"


def _entries(member: SweepRun) -> dict[str, Entry]:
    return {} if member.result is None else dict(member.result["evaluation"]["tasks"])


def _original(member: SweepRun, target: str) -> dict[str, Entry]:
    """The original's answers to a member's items, as the member's own result keeps them."""
    if member.result is None:
        return {}
    evaluation = member.result["evaluation"]
    found = evaluation["tasks"] if _is_original(member) else evaluation.get("original", {})
    return dict(found) if target in found else {}


def _cells(
    found: Mapping[str, Entry], reference: Mapping[str, Entry], target: str, counted: Sequence[str]
) -> list[str]:
    """A run's headline on every task, and its mean over the forgetting tests that count."""
    cells, values = [], {}
    for name, asked in reference.items():
        entry = found.get(name)
        if entry is None or any(entry.get(key) != asked.get(key) for key in _ALIKE):
            cells.append("–")
            continue
        values[name] = float(entry["metrics"][headline(asked)])
        marked = entry["trained_on"] and name != target
        cells.append(points(values[name]) + ("†" if marked else ""))
    kept = [values[name] for name in counted if name in values]
    mean = sum(kept) / len(kept) if kept and len(kept) == len(counted) else None
    return [*cells, points(mean)]


def _cost(member: SweepRun) -> list[str]:
    result = member.result
    if member.failure is not None:
        return ["–", "failed"]
    if result is None:
        return ["–", "–"]
    trainable = sum(result["trainable_parameters"].values())
    return [f"{trainable:,}", format_duration((result["training"] or {}).get("seconds"))]
