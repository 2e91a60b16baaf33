"""What stands side by side on a card: only scores by the same items and protocol as its own run.

Every other score is left out here, before any part of the card sees it, and told with the commands
that bring it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsm.messages import format_value
from imsm.report.arms import ComparedRun, runs_to_compare, baselines_of, with_labels, seeds_of
from imsm.report.comparison import comparable

Result = Mapping[str, Any]
_ASKING = ("tasks", "items", "items_by_task", "protocol")
"""Of the settings of judging those that decide which items are asked, and how they are scored."""


@dataclass(frozen=True, kw_only=True)
class ComparisonSet:
    """A card's arms and controls, and by arm's label its seeds' results.

    ``left_out`` and ``damages`` tell in a line each what is not there, and how it is to be had.
    """

    arms: list[ComparedRun]
    controls: list[ComparedRun]
    seeds: dict[str, dict[int, Result]]
    excluded: list[str]
    load_errors: list[str]


def build_comparison_set(folder: Path, result: Result, *, runs_root: Path) -> ComparisonSet:
    """The arms, controls and seeds that a run's card shows, with what of them may be compared.

    Args:
        folder: of the run.
        result: its own.
        runs_root: where the original and the other runs lie.

    Raises:
        UserError: the run's result tells nothing of its original.
    """
    found = runs_to_compare(folder, result, runs_root=runs_root)
    arms, judged = _compared(found, result), baselines_of(folder)
    controls = _compared(judged, result)
    seeds = {
        arm.label: seeds_of(runs_root, arm.result)
        for arm in arms
        if "seed" in arm.result["identity"]
    }
    runs = {arm.label: arm.result for arm in found}
    runs |= {
        f"{label} of seed {seed}": other
        for label, by_seed in seeds.items()
        for seed, other in by_seed.items()
        if all(other["identity"] != arm.result["identity"] for arm in found)
    }
    return ComparisonSet(
        arms=arms,
        controls=controls,
        seeds={
            label: {seed: _narrowed(other, result) for seed, other in by_seed.items()}
            for label, by_seed in seeds.items()
        },
        excluded=_told(runs, {arm.label: arm.result for arm in judged}, result, folder),
        load_errors=_damages([*arms, *controls], list(result["evaluation"]["tasks"])),
    )


def _compared(arms: Sequence[ComparedRun], focus: Result) -> list[ComparedRun]:
    """The arms with what of them may be compared, without those of which nothing may."""
    tasks = focus["evaluation"]["tasks"]
    kept = [a for a in arms if any(comparable(focus, a.result, task) for task in tasks)]
    return with_labels([(_narrowed(arm.result, focus), arm.folder) for arm in kept])


def _narrowed(result: Result, focus: Result) -> Result:
    """A result without the tasks of the focus on which it has no comparable score."""
    lacking = _lacking(result, focus)
    evaluation = result["evaluation"]
    tasks = {name: entry for name, entry in evaluation["tasks"].items() if name not in lacking}
    return {**result, "evaluation": {**evaluation, "tasks": tasks}}


def _lacking(result: Result, focus: Result) -> list[str]:
    tasks = focus["evaluation"]["tasks"]
    return [task for task in tasks if not comparable(focus, result, task)]


def _told(
    runs: Mapping[str, Result], controls: Mapping[str, Result], focus: Result, folder: Path
) -> list[str]:
    """One line on what is left out and which commands bring it; none if all is there."""
    short = {
        label: lacking
        for label, result in [*runs.items(), *controls.items()]
        if (lacking := _lacking(result, focus))
    }
    if not short:
        return []
    whole = len(focus["evaluation"]["tasks"])
    by_tasks: dict[str, list[str]] = {}
    for label, lacking in short.items():
        what = "all" if len(lacking) == whole else " and ".join(lacking)
        by_tasks.setdefault(what, []).append(label)
    listed = "; ".join(f"{what} of {', '.join(names)}" for what, names in by_tasks.items())
    ways = []
    if again := [runs[label] for label in short if label in runs]:
        settings = _settings(again, focus)
        ways.append(f"such a run's own command with {' '.join(['mode=evaluate', *settings])}")
    if any(label in controls for label in short):
        ways.append(f"for controls python -m imsm.controls --run {shlex.quote(str(folder))}")
    return [
        "Left out, since it was not judged on this run's items by its protocol: "
        f"{listed}. To compare it, give {' and '.join(ways)}, then "
        f"python -m imsm.report {shlex.quote(str(folder))}."
    ]


def _settings(others: Sequence[Result], focus: Result) -> list[str]:
    """The focus's settings of judging that another run lacks, as overrides of its command."""
    own = focus["evaluation"].get("settings", {})
    return [
        shlex.quote(f"evaluation.{key}={format_value(own[key])}")
        for key in _ASKING
        if key in own
        and any(other["evaluation"].get("settings", {}).get(key) != own[key] for other in others)
    ]


def _damages(arms: Sequence[ComparedRun], tasks: Sequence[str]) -> list[str]:
    """A line for each arm whose items are not whole: the file, the fix, what it costs the card."""
    lines = []
    for arm in arms:
        found = {task: damage for task in tasks if (damage := arm.load_error(task)) is not None}
        if found:
            first, *more = found
            others = f"; so it is with {', '.join(more)}" if more else ""
            lines.append(
                f"{arm.label}: {found[first]}{others}. Until then what rests on these items is a "
                "dash or left out."
            )
    return lines
