"""Tables of a sweep: one row per setting, one column per task, one table per target.

Runs that differ only in the seed share a row with their mean and its 95 % interval over seeds. The
original is the first row, with its scores on the same examples. Missing and failed runs are listed
with their commands. Scores are in points; a score on a task that the run was trained on is marked
with † and excluded from averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from rich.console import Console

from imsm.evaluation.statistics.intervals import student_ci
from imsm.reporting.render.escaping import markdown_text
from imsm.reporting.render.formatting import MISSING, format_number
from imsm.reporting.render.table import Table, print_notes, print_table
from imsm.reporting.runs import headline, tests_at_chance
from imsm.utils.control_characters import escape_controls
from imsm.utils.formatting import format_duration

Entry = Mapping[str, Any]
Entries = Mapping[str, Entry]
"""`evaluation.tasks` of a result."""
_SEED = "seed"
_COMPARABLE = ("test_set", "protocol")
"""Keys of a task's entry that must be equal for scores in one column."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep."""

    swept: Mapping[str, str]  # values of the swept keys, e.g. {"peft": "lora", "method": "imsm"}
    target: str  # name of its dataset
    about: Mapping[str, str]  # parts of the caption by key, e.g. {"backbone": "mini", "seed": "seed 0"}
    command: str  # shell command that runs it, e.g. `imsm run peft=lora`
    result: Mapping[str, Any] | None  # its `result.json`; None if the run is not finished
    failure: str | None = None  # error message of a failed run, in one line
    matched_by: Sequence[str] = ()  # training-free baselines of the run that are at least as good


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


def sweep_tables(runs: Sequence[SweepRun], *, each_seed: bool = False) -> list[SweepTable]:
    """Return a table for each target, in the order of the runs; ``each_seed`` gives each run its own row."""
    keys = [key for key in runs[0].swept if len({run.swept.get(key) for run in runs}) > 1]
    keys = [key for key in keys if each_seed or key != _SEED]
    targets = dict.fromkeys(run.target for run in runs)
    return [
        _table([run for run in runs if run.target == target], keys or ["method"], each_seed=each_seed)
        for target in targets
    ]


def as_json(run: SweepRun) -> dict[str, Any]:
    """Return the JSON values of one run: its settings, state and, if it is finished, scores in points by task."""
    result = run.result or {}
    training = result.get("training") or {}
    tasks = result.get("evaluation", {}).get("tasks", {})
    keys = ("role", "trained_on", "num_examples", "headline", "metrics", "test_set", "protocol")
    return {
        "name": result.get("name"),
        "settings": dict(run.swept),
        "target": run.target,
        "about": dict(run.about),
        "state": "finished" if run.result is not None else "missing" if run.failure is None else "failed",
        "error": run.failure,
        "command": run.command,
        "tasks": {name: {key: entry[key] for key in keys if key in entry} for name, entry in tasks.items()},
        "trainable_parameters": result.get("trainable_parameters"),
        "training_seconds": training.get("seconds"),
        "matched_by": list(run.matched_by),
    }


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
        blocks += [f"## {markdown_text(each.table.caption)}", each.table.to_markdown()]
        blocks += map(markdown_text, [*each.table.notes, *each.commands])
    return escape_controls("\n\n".join(blocks) + "\n")


def _table(runs: Sequence[SweepRun], keys: Sequence[str], *, each_seed: bool) -> SweepTable:
    target = runs[0].target
    original = next((entries for run in runs if (entries := _original_entries(run, target))), {})
    settings = _by_setting([run for run in runs if run.swept.get("method") != "original"], each_seed=each_seed)
    finished = [[run.result["evaluation"]["tasks"] for run in found if run.result is not None] for found in settings]
    scored = [original, *(entries for seeds in finished for entries in seeds)]
    # the first scores decide which examples a column is about
    reference: dict[str, Entry] = next((entries for entries in scored if entries), {})
    reference = {name: reference[name] for name in sorted(reference, key=lambda name: name != target)}
    trained_on = {name for entries in scored for name in reference if entries.get(name, {}).get("trained_on")}
    tests = [name for name in reference if name != target and name not in trained_on]
    at_chance = tests_at_chance(original, tests)
    forgetting = [name for name in tests if name not in at_chance]
    scores = partial(_score_cells, reference=reference, target=target, forgetting=forgetting)
    several = any(len(found) > 1 for found in settings)
    rows = [["original", *[""] * (len(keys) - 1 + several), *scores([original] if original else []), "", ""]]
    for found, seeds in zip(settings, finished, strict=True):
        count = str(len(found)) if len(seeds) == len(found) else f"{len(seeds)} of {len(found)}"
        values = [found[0].swept.get(key, MISSING) for key in keys]
        rows.append([*values, *([count] if several else []), *scores(seeds), *_cost_cells(found)])
    about = [_about(runs, key) for key in runs[0].about if key not in keys]
    table = Table(
        caption=" · ".join([f"trained on {target}", *about]),
        columns=[*keys, *(["seeds"] if several else []), *reference, "retention average", "parameters", "training"],
        rows=rows,
        text_columns=len(keys),
        notes=[*_notes(rows, reference, forgetting, at_chance), *_baseline_notes(runs)],
    )
    return SweepTable(
        table=table,
        missing=[run.command for run in runs if run.result is None and run.failure is None],
        failed=[(run.failure, run.command) for run in runs if run.failure is not None],
    )


def _by_setting(runs: Sequence[SweepRun], *, each_seed: bool) -> list[list[SweepRun]]:
    """Group runs that differ only in the seed; with ``each_seed`` every run is alone."""
    if each_seed:
        return [[run] for run in runs]
    groups: dict[frozenset[tuple[str, str]], list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(frozenset(item for item in run.swept.items() if item[0] != _SEED), []).append(run)
    return list(groups.values())


def _about(runs: Sequence[SweepRun], key: str) -> str:
    """Return a part of the caption, e.g. "mini", or "seeds 0, 1, 2" where the runs differ."""
    values = list(dict.fromkeys(run.about[key] for run in runs if key in run.about))
    if len(values) == 1:
        return values[0]
    return f"{key}s " + ", ".join(value.removeprefix(f"{key} ") for value in values)


def _notes(
    rows: Sequence[Sequence[str]], reference: Mapping[str, Entry], forgetting: Sequence[str], at_chance: Sequence[str]
) -> list[str]:
    metrics = ", ".join(f"{name} {headline(entry)}" for name, entry in reference.items())
    notes = [f"Metrics: {metrics}."] if metrics else []
    notes += [f"Retention average: the mean of {', '.join(forgetting)}."] if forgetting else []
    if at_chance:
        notes.append(
            f"The original is at chance on {' and '.join(at_chance)} (within two standard errors): these scores "
            "cannot show forgetting, and the retention average leaves them out."
        )
    if any("±" in cell for row in rows for cell in row):
        notes.append("±: 95 % interval of the mean over seeds (Student's t), on the same test examples.")
    if any("†" in cell for row in rows for cell in row):
        notes.append("† the run was trained on this task too; all averages exclude it.")
    if any(MISSING in row for row in rows):
        notes.append("– not evaluated, or evaluated on other examples or under another protocol.")
    protocols = sorted({entry.get("protocol", "strict") for entry in reference.values()} - {"strict"})
    return notes + [f"Protocol: {name}." for name in protocols]


def _baseline_notes(runs: Sequence[SweepRun]) -> list[str]:
    matched = [run.matched_by for run in runs if run.matched_by]
    if not matched:
        return []
    listed = ", ".join(dict.fromkeys(name for names in matched for name in names))
    return [
        f"Training-free baselines match {len(matched)} of these runs (`imsm baselines RUN`): {listed} retain at "
        "least as much at no lower target score."
    ]


def _original_entries(run: SweepRun, target: str) -> dict[str, Entry]:
    """Return the original's entries as a run's result stores them."""
    if run.result is None:
        return {}
    evaluation = run.result["evaluation"]
    found = evaluation["tasks"] if run.swept.get("method") == "original" else evaluation.get("original", {})
    # the original of another target's run lacks this target
    return dict(found) if target in found else {}


def _score_cells(seeds: Sequence[Entries], *, reference: Entries, target: str, forgetting: Sequence[str]) -> list[str]:
    """Return the mean headline score over seeds on every task, and the retention average."""
    cells, scores = [], {}
    for name, expected in reference.items():
        found = [entries[name] for entries in seeds if _is_comparable(entries.get(name), expected)]
        # a mean over fewer seeds than in the other columns would mislead
        if not found or len(found) < len(seeds):
            cells.append(MISSING)
            continue
        scores[name] = [float(entry["metrics"][headline(expected)]) for entry in found]
        mark = "†" if name != target and any(entry["trained_on"] for entry in found) else ""
        cells.append(_format_mean(scores[name]) + mark)
    # nor a mean over fewer tests than in the other rows
    if not forgetting or not all(name in scores for name in forgetting):
        return [*cells, MISSING]
    return [*cells, _format_mean(list(map(fmean, zip(*(scores[name] for name in forgetting), strict=True))))]


def _is_comparable(entry: Entry | None, expected: Entry) -> bool:
    return entry is not None and all(entry.get(key) == expected.get(key) for key in _COMPARABLE)


def _format_mean(scores: Sequence[float]) -> str:
    """Return a mean over seeds with half the width of its interval, e.g. ``94.5 ± 3.9``."""
    interval = student_ci(scores)
    reach = f" ± {format_number(interval.high - interval.estimate)}" if len(scores) > 1 else ""
    return format_number(interval.estimate) + reach


def _cost_cells(runs: Sequence[SweepRun]) -> list[str]:
    """Return trainable parameters and the mean training time of runs that differ only in the seed."""
    results = [run.result for run in runs if run.result is not None]
    if not results:
        return [MISSING, "failed" if any(run.failure is not None for run in runs) else MISSING]
    seconds = [result["training"]["seconds"] for result in results if result["training"]]
    trainable = sum(results[0]["trainable_parameters"].values())
    return [f"{trainable:,}", format_duration(fmean(seconds) if seconds else None)]
