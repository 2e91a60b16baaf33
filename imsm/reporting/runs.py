"""What stands side by side on a card: only scores by the same items and protocol as its own run.

Every other score is left out here, before any part of the card sees it, and told with the commands
that bring it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from imsm.config.identity import (
    baseline_config,
    comparable_up_to_method,
    identity_without_seed,
    is_original,
    run_identity,
    run_name,
)
from imsm.config.schema import RunConfig
from imsm.evaluation.predictions import FILE as ITEMS
from imsm.evaluation.predictions import read_predictions, task_dir
from imsm.evaluation.result import FILE, read_result
from imsm.reporting.score_table import comparable, labels_of
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value

if TYPE_CHECKING:
    import pandas


ORDER = {"original": 0, "tuned": 1, "interwoven": 2}
CONTROL = "baseline"


@dataclass(kw_only=True)
class ComparedRun:
    """One arm: its name on the card, its `result.json`, and the folder of its items."""

    label: str
    result: Mapping[str, Any]
    folder: Path
    _items: dict[str, pandas.DataFrame | None] = field(default_factory=dict, repr=False)
    _damages: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def method(self) -> str:
        """original, peft, imsm or control, or one of one's own."""
        return str(self.result["method"])

    def entry(self, task: str) -> Mapping[str, Any]:
        """What `result.json` says of a task; empty if it was not asked."""
        found: Mapping[str, Any] = self.result["evaluation"]["tasks"].get(task, {})
        return found

    def items(self, task: str) -> pandas.DataFrame | None:
        """The task's items; None where there are none (an older run), or they are damaged."""
        if task not in self._items:
            try:
                self._items[task] = self._load(task)
            except UserError as error:
                self._items[task] = None
                self._damages[task] = str(error)
        return self._items[task]

    def load_error(self, task: str) -> str | None:
        """The file of the task's items that is not whole, and the fix; None if there is no such."""
        self.items(task)
        damage = self._damages.get(task)
        if damage is None or self.method != CONTROL:
            return damage
        run = shlex.quote(str(self.folder.parent.parent))
        return f"{damage}; a control: imsm baselines {run}"

    def _load(self, task: str) -> pandas.DataFrame | None:
        """The items; None of a task that was not asked.

        Raises:
            UserError: they are not there or damaged, or are not as many as the result says.
        """
        entry = self.entry(task)
        if not entry:
            return None
        test_set = entry.get("test_set", "")
        found = read_predictions(self.folder, task=task, test_set=test_set)
        if len(found) != entry["num_examples"]:
            path = task_dir(self.folder, task=task, test_set=test_set) / ITEMS
            raise UserError(
                f"{path}: holds {len(found)} items, not {entry['num_examples']}; judge the run again (the "
                "same command with mode=evaluate), which makes it anew from the ledger"
            )
        return found


def runs_to_compare(
    folder: Path, result: Mapping[str, Any], *, runs_root: Path, siblings: bool = True
) -> list[ComparedRun]:
    """The original, finished runs that differ in nothing but the method, and this run, the last.

    Args:
        folder: of the run.
        result: its own.
        runs_root: where the original and the other runs lie.
        siblings: whether other runs are looked for.

    Raises:
        UserError: the run's result tells nothing of its original.
    """
    if result.get("identity") is None:
        raise UserError(f"{folder / FILE}: lacks identity; run the same command again")
    found = [(result, folder)]
    if not is_original(result["identity"]):
        others = find_comparable_runs(runs_root, result) if siblings else []
        others = [(each, place) for each, place in others if each["method"] != "original"]
        found = [_original(folder, result, runs_root=runs_root), *others, *found]
    return with_labels(found)


def find_comparable_runs(runs_root: Path, result: Mapping[str, Any]) -> list[tuple[dict[str, Any], Path]]:
    """Finished runs under ``runs_root`` that differ from a run in nothing but the method.

    The original of the same backbone is among them; the original itself has none, since it belongs
    to every run on its backbone. Of several runs of one method and gate, the newest counts, if one
    has a test set in common the newest of these.

    Returns:
        Results and their folders: the original, PEFT, then the interwoven arms.
    """
    own = result.get("identity")
    if own is None or is_original(own):
        return []
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    common: set[str] = set()
    for other, path in _finished(runs_root):
        identity = other["identity"]
        if identity == own or not comparable_up_to_method(own, identity):
            continue
        kind = _kind(other)
        if any(comparable(result, other, task) for task in result["evaluation"]["tasks"]):
            common.add(kind)
        elif kind in common:
            continue
        found[kind] = (other, path)
    return sorted(found.values(), key=lambda pair: _place(pair[0]))


def baselines_of(folder: Path) -> list[ComparedRun]:
    """The training-free controls that were judged on a run, by name."""
    found = []
    for path in sorted(folder.glob(f"baselines/*/{FILE}")):
        try:
            found.append((read_result(path.parent), path.parent))
        except UserError:
            continue  # of an older format, or unfinished
    return with_labels(found)


def seeds_of(runs_root: Path, result: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Finished runs that differ from a run in nothing but the seed, itself too, by seed."""
    own = identity_without_seed(result["identity"])
    found = {
        int(other["identity"]["seed"]): other
        for other, _ in _finished(runs_root)
        if "seed" in other["identity"] and identity_without_seed(other["identity"]) == own
    }
    seed = result["identity"].get("seed")
    return found | ({} if seed is None else {int(seed): result})


def _original(place: Path, result: Mapping[str, Any], *, runs_root: Path) -> tuple[Mapping[str, Any], Path]:
    """The original's result on a run's tasks, as the run kept it, and where its items lie."""
    alone = baseline_config(_config_of(place, result))
    folder = runs_root / run_name(alone)
    evaluation = result["evaluation"]
    if not isinstance(evaluation.get("original"), dict):
        raise UserError(
            f"{place / FILE}: lacks evaluation.original, the scores before training; judge the run "
            "again (the same command with mode=evaluate)"
        )
    kept = {"settings": evaluation.get("settings", {}), "tasks": evaluation["original"]}
    return {
        **result,
        "name": folder.name,
        "method": "original",
        "identity": run_identity(alone),
        "config": alone.to_dict(),
        "trainable_parameters": {"adapter": 0, "gate": 0},
        "training": None,
        "evaluation": kept,
    }, folder


def _config_of(place: Path, result: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.from_dict(result["config"])
    except ValidationError as error:
        raise UserError(
            f"{place / FILE}: its configuration is of another version of imsm; give the run's command again"
        ) from error


def _finished(runs_root: Path) -> list[tuple[dict[str, Any], Path]]:
    """Every finished run under a root, the newest last."""
    found = []
    for path in sorted(runs_root.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime):
        try:
            result = read_result(path.parent)
        except UserError:
            continue  # of an older format, or damaged: it cannot be compared
        if result.get("identity") is not None:
            found.append((result, path.parent))
    return found


def with_labels(found: Sequence[tuple[Mapping[str, Any], Path]]) -> list[ComparedRun]:
    """Arms of results and their folders, by names that tell them apart."""
    labels = labels_of([result for result, _ in found])
    return [
        ComparedRun(label=label, result=result, folder=folder)
        for label, (result, folder) in zip(labels, found, strict=True)
    ]


def _kind(result: Mapping[str, Any]) -> str:
    """What arms have in common of which only the newest is shown: method, gate, adapter frozen."""
    identity = result["identity"]
    frozen = "frozen_adapter" in identity
    return str([result["method"], sorted(identity.get("gate", {}).items()), frozen])


def _place(result: Mapping[str, Any]) -> tuple[int, str, str]:
    stream = result["identity"]["method"]["stream"]
    return ORDER[stream], result["config"]["gate"]["name"], _kind(result)


Result = Mapping[str, Any]
_ASKING = ("tasks", "limit", "limit_by_task", "protocol")
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
    seeds = {arm.label: seeds_of(runs_root, arm.result) for arm in arms if "seed" in arm.result["identity"]}
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


def _told(runs: Mapping[str, Result], controls: Mapping[str, Result], focus: Result, folder: Path) -> list[str]:
    """One line on what is left out and which commands bring it; none if all is there."""
    short = {
        label: lacking for label, result in [*runs.items(), *controls.items()] if (lacking := _lacking(result, focus))
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
        ways.append(f"for controls imsm baselines {shlex.quote(str(folder))}")
    return [
        "Left out, since it was not judged on this run's items by its protocol: "
        f"{listed}. To compare it, give {' and '.join(ways)}, then "
        f"imsm report {shlex.quote(str(folder))}."
    ]


def _settings(others: Sequence[Result], focus: Result) -> list[str]:
    """The focus's settings of judging that another run lacks, as overrides of its command."""
    own = focus["evaluation"].get("settings", {})
    return [
        shlex.quote(f"evaluation.{key}={format_value(own[key])}")
        for key in _ASKING
        if key in own and any(other["evaluation"].get("settings", {}).get(key) != own[key] for other in others)
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
                f"{arm.label}: {found[first]}{others}. Until then what rests on these items is a dash or left out."
            )
    return lines
