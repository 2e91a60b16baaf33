"""Tables of a sweep: one row per run, one column per task, one table per target.

The original is the first row, with its scores on the same examples. Missing and failed runs are listed
with their commands. Scores are in points; a score on a task that the run was trained on is marked
with † and excluded from averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console

from imsm.reporting.render.formatting import MISSING, format_number
from imsm.reporting.render.table import Table, print_notes, print_table
from imsm.reporting.runs import headline
from imsm.utils.formatting import format_duration

Entry = Mapping[str, Any]
_COMPARABLE = ("test_set", "protocol")
"""Keys of a task's entry that must be equal for scores in one column."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep."""

    swept: Mapping[str, str]  # values of the swept keys, e.g. {"peft": "lora", "method": "imsm"}
    target: str  # name of its dataset
    about: Mapping[str, str]  # other parts of the caption by key, e.g. {"backbone": "mini", "seed": "seed 0"}
    command: str  # shell command that runs it, e.g. `imsm run peft=lora`
    result: Mapping[str, Any] | None  # its `result.json`; None if the run is not finished
    failure: str | None = None  # error message of a failed run, in one line


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """All runs of one target, commands of unfinished runs, and error and command of failed ones."""

    table: Table
    missing: list[str]
    failed: list[tuple[str, str]]

    @property
    def commands(self) -> list[str]:
        """Lines with the commands that complete the table."""
        failed = [line for error, command in self.failed for line in (f"failed: {error}", f"  run again: {command}")]
        return failed + [f"missing: {command}" for command in self.missing]


def sweep_tables(runs: Sequence[SweepRun]) -> list[SweepTable]:
    """Return a table for each target, in the order of the runs."""
    keys = [key for key in runs[0].swept if len({run.swept.get(key) for run in runs}) > 1]
    targets = dict.fromkeys(run.target for run in runs)
    return [_table([run for run in runs if run.target == target], keys or ["method"]) for target in targets]


def render_terminal(tables: Sequence[SweepTable], *, console: Console | None = None) -> None:
    """Print the tables, and the commands of the missing runs in one line each."""
    console = console or Console()
    for each in tables:
        console.print()
        print_table(each.table, console)
        print_notes(each.commands, console, wrap=False)


def render_markdown(tables: Sequence[SweepTable]) -> str:
    """Return the tables as Markdown."""
    blocks: list[str] = []
    for each in tables:
        blocks += [f"## {each.table.caption}", each.table.to_markdown(), *each.table.notes, *each.commands]
    return "\n\n".join(blocks) + "\n"


def _table(runs: Sequence[SweepRun], keys: Sequence[str]) -> SweepTable:
    target = runs[0].target
    original = next((entries for run in runs if (entries := _original_entries(run, target))), {})
    trained = [run for run in runs if run.swept.get("method") != "original"]
    scored = [original, *({} if run.result is None else run.result["evaluation"]["tasks"] for run in trained)]
    # the first scores decide which examples a column is about
    reference: dict[str, Entry] = next((entries for entries in scored if entries), {})
    reference = {name: reference[name] for name in sorted(reference, key=lambda name: name != target)}
    trained_on = {name for entries in scored for name in reference if entries.get(name, {}).get("trained_on")}
    forgetting = [name for name in reference if name != target and name not in trained_on]
    rows = [["original", *[""] * (len(keys) - 1), *_score_cells(original, reference, target, forgetting), "", ""]]
    for run, entries in zip(trained, scored[1:], strict=True):
        cells = _score_cells(entries, reference, target, forgetting)
        rows.append([*(run.swept.get(key, MISSING) for key in keys), *cells, *_cost_cells(run)])
    about = [value for key, value in runs[0].about.items() if key not in keys]
    table = Table(
        caption=" · ".join([f"trained on {target}", *about]),
        columns=[*keys, *reference, "retention average", "parameters", "training"],
        rows=rows,
        text_columns=len(keys),
        notes=_notes(rows, reference, forgetting),
    )
    return SweepTable(
        table=table,
        missing=[run.command for run in runs if run.result is None and run.failure is None],
        failed=[(run.failure, run.command) for run in runs if run.failure is not None],
    )


def _notes(rows: Sequence[Sequence[str]], reference: Mapping[str, Entry], forgetting: Sequence[str]) -> list[str]:
    metrics = ", ".join(f"{name} {headline(entry)}" for name, entry in reference.items())
    notes = [f"Metrics: {metrics}."] if metrics else []
    notes += [f"Retention average: the mean of {', '.join(forgetting)}."] if forgetting else []
    if any("†" in cell for row in rows for cell in row):
        notes.append("† the run was trained on this task too; all averages exclude it.")
    if any(MISSING in row for row in rows):
        notes.append("– not evaluated, or evaluated on other examples or under another protocol.")
    protocols = sorted({entry.get("protocol", "strict") for entry in reference.values()} - {"strict"})
    return notes + [f"Protocol: {name}." for name in protocols]


def _original_entries(run: SweepRun, target: str) -> dict[str, Entry]:
    """Return the original's entries as a run's result stores them."""
    if run.result is None:
        return {}
    evaluation = run.result["evaluation"]
    found = evaluation["tasks"] if run.swept.get("method") == "original" else evaluation.get("original", {})
    # the original of another target's run lacks this target
    return dict(found) if target in found else {}


def _score_cells(
    entries: Mapping[str, Entry], reference: Mapping[str, Entry], target: str, forgetting: Sequence[str]
) -> list[str]:
    """Return a run's headline score on every task, and its retention average."""
    cells, scores = [], {}
    for name, expected in reference.items():
        entry = entries.get(name)
        if entry is None or any(entry.get(key) != expected.get(key) for key in _COMPARABLE):
            cells.append(MISSING)
            continue
        scores[name] = float(entry["metrics"][headline(expected)])
        cells.append(format_number(scores[name]) + ("†" if entry["trained_on"] and name != target else ""))
    # a mean over fewer tests than in the other rows would mislead
    found = [scores[name] for name in forgetting if name in scores]
    return [*cells, format_number(fmean(found) if found and len(found) == len(forgetting) else None)]


def _cost_cells(run: SweepRun) -> list[str]:
    if run.failure is not None:
        return [MISSING, "failed"]
    if run.result is None:
        return [MISSING, MISSING]
    trainable = sum(run.result["trainable_parameters"].values())
    return [f"{trainable:,}", format_duration((run.result["training"] or {}).get("seconds"))]
