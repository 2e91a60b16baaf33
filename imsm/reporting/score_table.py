"""Arms side by side: what each scored per task, and how far it is from the original and from PEFT.

The results hold only what may be compared: `imsm.reporting.runs` leaves the rest out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imsm.utils.messages import format_value

Result = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One arm on one task and metric, in points; None where its result has none."""

    arm: str
    value: float | None
    to_original: float | None
    to_peft: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One task and metric over all arms."""

    task: str
    role: str
    """target, forgetting or average."""
    metric: str
    items: int | None
    marked: bool
    """A test among those asked for that an arm trained on."""
    scores: list[Score]


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What an arm took; None where nothing was trained."""

    arm: str
    adapter: int
    gate: int
    training_seconds: float | None
    training_rate: float | None
    peak_memory_bytes: int | None
    judging_seconds: float
    judging_rate: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Everything that a report card shows."""

    focus: Result
    """The run that the card is about: the last one given."""
    arms: list[str]
    to_original: list[int]
    """The arms, by their place, that have a difference to the original."""
    to_peft: list[int]
    """The arms, by their place, that have a difference to PEFT."""
    headlines: list[ScoreRow]
    """The headline of each task, the target first, then the average of the forgetting tests."""
    all_metrics: list[ScoreRow]
    costs: list[CostRow]
    notes: list[str]


def compare(results: Sequence[Result]) -> ScoreTable:
    """Compute a card; the last result is the run that it is about.

    Args:
        results: as `result.json` keeps them, the original first.
    """
    focus = results[-1]
    arms = labels_of(results)
    target = _target(results)
    tasks = sorted(focus["evaluation"]["tasks"], key=lambda name: name != target)
    headlines, everything = [], []
    for task in tasks:
        entry = focus["evaluation"]["tasks"][task]
        for metric in entry["metrics"]:
            row = _row(results, arms, task=task, metric=metric, target=target)
            everything.append(row)
            if metric == headline(entry):
                headlines.append(row)
    average, counted = _average(arms, results, headlines)
    methods = [result["method"] for result in results]
    return ScoreTable(
        focus=focus,
        arms=arms,
        to_original=_others(methods, "original", beside=()),
        to_peft=_others(methods, "peft", beside=("original",)),
        headlines=headlines + ([average] if average else []),
        all_metrics=everything,
        costs=[_cost(arm, result) for arm, result in zip(arms, results, strict=True)],
        notes=_notes(headlines, counted) + _leaks(focus),
    )


def headline(entry: Mapping[str, Any]) -> str:
    """The metric of a task's entry that stands for it: the named one, else the first."""
    named = str(entry["headline"])
    return named if named in entry["metrics"] else next(iter(entry["metrics"]))


def comparable(one: Result, other: Result, task: str) -> bool:
    """Whether two results asked the same items of a task."""
    entries = [result["evaluation"]["tasks"].get(task) for result in (one, other)]
    if None in entries:
        return False
    same = entries[0].get("test_set") == entries[1].get("test_set")
    return same and entries[0].get("protocol", "strict") == entries[1].get("protocol", "strict")


def _others(methods: Sequence[str], method: str, *, beside: Sequence[str]) -> list[int]:
    """The places of all methods but ``method`` and those ``beside`` it; none if it is not there."""
    if method not in methods:
        return []
    return [place for place, name in enumerate(methods) if name not in (method, *beside)]


def labels_of(results: Sequence[Result]) -> list[str]:
    """The arms' names; arms of one method are told apart by what differs in their gates.

    A gate that was fitted on a frozen adapter says so.
    """
    labels = []
    for result in results:
        control = result["config"].get("baseline")
        if control is not None:
            value = control.get("value")
            shown = "" if value is None else f" {format_value(value)}"
            labels.append(f"{control['name'].replace('_', ' ')}{shown}")
            continue
        gates = [r["config"].get("gate", {}) for r in results if r["method"] == result["method"]]
        label = result["method"]
        told = [_gate_label(result["config"].get("gate", {}), gates)] if len(gates) > 1 else []
        told += ["frozen adapter"] if "frozen_adapter" in result.get("identity", {}) else []
        labels.append(f"{label} ({', '.join(told)})" if told else label)
    return labels


def _gate_label(gate: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """A gate's name and rank, and what else differs between the gates of its name and rank."""
    rank = f" r{gate['rank']}" if gate.get("rank") else ""
    alike = [g for g in gates if all(g.get(key) == gate.get(key) for key in ("name", "rank"))]
    differing = [key for key in gate if any(g.get(key) != gate[key] for g in alike)]
    return f"{gate.get('name', '')}{rank}" + "".join(f" {k}={format_value(gate[k])}" for k in differing)


def _target(results: Sequence[Result]) -> str | None:
    """The task that the trained arms learned; the original's own choice if there is none."""
    for result in reversed(results):
        for name, entry in result["evaluation"]["tasks"].items():
            if entry["role"] == "target":
                return str(name)
    return None


def _row(results: Sequence[Result], arms: list[str], *, task: str, metric: str, target: str | None) -> ScoreRow:
    focus = results[-1]
    entries = [result["evaluation"]["tasks"].get(task, {}) for result in results]
    values = [entry.get("metrics", {}).get(metric) for entry in entries]
    trained_on = any(entry.get("trained_on") for entry in entries)
    is_target = task == target
    asked = focus["evaluation"].get("settings", {}).get("tasks", [])
    return ScoreRow(
        task=task,
        role="target" if is_target else "forgetting",
        metric=metric,
        items=focus["evaluation"]["tasks"][task]["num_examples"],
        marked=trained_on and (task in asked if is_target else True),
        scores=_scores(arms, results, values),
    )


def _scores(arms: list[str], results: Sequence[Result], values: Sequence[float | None]) -> list[Score]:
    methods = [result["method"] for result in results]
    original = values[methods.index("original")] if "original" in methods else None
    peft = values[methods.index("peft")] if "peft" in methods else None
    return [
        Score(
            arm=arm,
            value=value,
            to_original=None if method == "original" else _minus(value, original),
            to_peft=None if method in ("original", "peft") else _minus(value, peft),
        )
        for arm, method, value in zip(arms, methods, values, strict=True)
    ]


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _average(
    arms: list[str], results: Sequence[Result], rows: Sequence[ScoreRow]
) -> tuple[ScoreRow | None, list[str]]:
    """The mean over forgetting tests that no arm trained on and all answered, and their names."""
    counted = [
        row
        for row in rows
        if row.role == "forgetting" and not row.marked and all(score.value is not None for score in row.scores)
    ]
    if len(counted) < 2:
        return None, []
    values = [sum(row.scores[arm].value or 0.0 for row in counted) / len(counted) for arm in range(len(arms))]
    row = ScoreRow(
        task="average",
        role="average",
        metric=f"{len(counted)} forgetting tests",
        items=None,
        marked=False,
        scores=_scores(arms, results, values),
    )
    return row, [row.task for row in counted]


def _cost(arm: str, result: Result) -> CostRow:
    training = result["training"] or {}
    tasks = result["evaluation"]["tasks"].values()
    seconds = sum(entry["seconds"] for entry in tasks)
    tokens = sum(entry["new_tokens"] for entry in tasks)
    return CostRow(
        arm=arm,
        adapter=result["trainable_parameters"]["adapter"],
        gate=result["trainable_parameters"]["gate"],
        training_seconds=training.get("seconds"),
        training_rate=training.get("tokens_per_second"),
        peak_memory_bytes=training.get("peak_memory_bytes"),
        judging_seconds=seconds,
        judging_rate=tokens / seconds if seconds else None,
    )


def _leaks(focus: Result) -> list[str]:
    """What of the tests also stands in what the run learned from."""
    notes = []
    for task, entry in focus["evaluation"]["tasks"].items():
        found = entry.get("contamination") or {"count": 0}
        if found["count"]:
            named = ", ".join(found["ids"])
            more = found["count"] - len(found["ids"])
            rest = f" and {more} more" if more > 0 else ""
            notes.append(f"{found['count']} items of {task} stand in the training examples too: {named}{rest}.")
    return notes


def _notes(rows: Sequence[ScoreRow], counted: Sequence[str]) -> list[str]:
    notes = [f"The average is over {', '.join(counted)}."] if counted else []
    notes += [
        f"† {row.task}: a run here trained on it; it says what was learned, and enters no average of forgetting tests."
        for row in rows
        if row.marked
    ]
    if any(score.value is None for row in rows for score in row.scores):
        notes.append("– not judged, or judged on other items.")
    return notes
