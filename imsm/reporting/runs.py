"""Find the runs that may be compared with a run, and explain why others may not.

Scores are compared only if they are of the same examples under the same protocol.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas
from pydantic import ValidationError

from imsm.config.identity import comparable_up_to_method, identity_without_seed, is_imported, is_original, original_run
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import FILE, read_result, result_error
from imsm.reporting.training_log import training_log_error
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value
from imsm.utils.trust import METRICS, check_trusted

BASELINE = "baseline"
"""`method` of a training-free baseline's result."""
_STREAM_ORDER = {"original": 0, "tuned": 1, "interwoven": 2}
_TEST_SET_KEYS = ("tasks", "limit", "limit_by_task", "protocol")
"""Evaluation settings that select the examples and the protocol."""
_MAX_LISTED = 5
"""Number of unreadable results that are named besides the first."""

Result = Mapping[str, Any]


@dataclass(kw_only=True)
class ComparedRun:
    """A run in a report: label, `result.json` and folder of its predictions."""

    label: str
    result: Result
    folder: Path
    _predictions: dict[str, pandas.DataFrame | None] = field(default_factory=dict, repr=False)
    _load_errors: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def method(self) -> str:
        """original, peft, imsm, baseline, or a custom method."""
        return str(self.result["method"])

    def task_result(self, task: str) -> Mapping[str, Any]:
        """Return a task's entry of `result.json`; empty if the task was not evaluated."""
        entry: Mapping[str, Any] = self.result["evaluation"]["tasks"].get(task, {})
        return entry

    def score(self, task: str, metric: str) -> float | None:
        """Return a recorded score in points, or None."""
        value = self.task_result(task).get("metrics", {}).get(metric)
        return None if value is None else float(value)

    def predictions(self, task: str) -> pandas.DataFrame | None:
        """Return a task's predictions; None if they are missing or damaged."""
        # cached, because many statistics of a report read the same large files
        if task not in self._predictions:
            try:
                self._predictions[task] = self._load(task)
            except UserError as error:
                self._predictions[task] = None
                self._load_errors[task] = str(error)
        return self._predictions[task]

    def load_error(self, task: str) -> str | None:
        """Return why a task's predictions cannot be loaded and the fix, or None."""
        self.predictions(task)
        error = self._load_errors.get(task)
        if error is None or self.method != BASELINE:
            return error
        return f"{error}; for this baseline: imsm baselines {shlex.quote(str(self.folder.parent.parent))}"

    def _load(self, task: str) -> pandas.DataFrame | None:
        """Read a task's predictions; None if the task was not evaluated.

        Raises:
            UserError: They are missing, damaged, or not those that `result.json` was computed from, or a metric of
                the task is not trusted.
        """
        entry = self.task_result(task)
        if not entry:
            return None
        # here, so that a report leaves out a foreign run next to its own instead of failing
        modules = self.result["config"].get("metrics", {})
        for name in modules.keys() & entry.get("metrics", {}).keys():
            check_trusted(modules[name], within=METRICS, key=f"config.metrics.{name}", source=self.folder / FILE)
        test_set, sha256 = entry.get("test_set", ""), entry.get("predictions_sha256")
        return read_predictions(self.folder, task=task, test_set=test_set, sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class ComparisonSet:
    """The runs, baselines and seeds of a report, reduced to comparable scores."""

    runs: list[ComparedRun]  # the original first, the reported run last
    baselines: list[ComparedRun]  # training-free baselines of the reported run
    seeds: dict[str, dict[int, Result]]  # by a run's label, the results of runs that differ only in the seed
    excluded: list[str]  # what was excluded and the commands that make it comparable, one line each
    load_errors: list[str]  # predictions that could not be loaded, one line for each run


def build_comparison_set(folder: Path, result: Result, *, runs_root: Path) -> ComparisonSet:
    """Collect comparable runs, baselines and seeds; see `runs_to_compare`.

    Raises:
        UserError: The result has no scores of its original.
    """
    found = runs_to_compare(folder, result, runs_root=runs_root)
    all_baselines = baselines_of(folder)
    runs, baselines = _comparable_part(found, result), _comparable_part(all_baselines, result)
    seeds = {run.label: seeds_of(runs_root, run.result) for run in runs if "seed" in run.result["identity"]}
    results = {run.label: run.result for run in found}
    # the compared runs are among their own seeds, and would be listed twice
    identities = [run.result["identity"] for run in found]
    for label, by_seed in seeds.items():
        others = {seed: other for seed, other in by_seed.items() if other["identity"] not in identities}
        results |= {f"{label} with seed {seed}": other for seed, other in others.items()}
    return ComparisonSet(
        runs=runs,
        baselines=baselines,
        seeds={
            label: {seed: _comparable_tasks(other, result) for seed, other in by_seed.items()}
            for label, by_seed in seeds.items()
        },
        excluded=[
            *_explain_excluded(results, {run.label: run.result for run in all_baselines}, result, folder),
            *_unreadable_results(folder, runs_root),
        ],
        load_errors=[
            *_list_load_errors([*runs, *baselines], list(result["evaluation"]["tasks"])),
            *(error for run in runs if run.result["training"] and (error := training_log_error(run.folder))),
        ],
    )


def runs_to_compare(folder: Path, result: Result, *, runs_root: Path, siblings: bool = True) -> list[ComparedRun]:
    """Return the original, runs that differ only in the method, and the run.

    ``runs_root`` is the folder of the original and the other runs; without ``siblings`` no other run is searched.

    Raises:
        UserError: The result has no scores of its original.
    """
    if result.get("identity") is None:
        raise UserError(f"{folder / FILE}: lacks identity; run the same command again")
    found = [(result, folder)]
    if not is_original(result["identity"]):
        others = find_comparable_runs(runs_root, result) if siblings else []
        others = [(other, path) for other, path in others if other["method"] != "original"]
        # the original that this run recorded: a newer one may be on other examples
        found = [_original(folder, result, runs_root=runs_root), *others, *found]
    return with_labels(found)


def find_comparable_runs(runs_root: Path, result: Result) -> list[tuple[dict[str, Any], Path]]:
    """Return finished runs that differ only in the method, the original first.

    Of several runs with one method and gate, the newest is returned, preferring those that share a test set
    with the run. For the original the result is empty, because every run on its backbone would qualify.
    """
    own = result.get("identity")
    if own is None or is_original(own):
        return []
    found: dict[str, tuple[dict[str, Any], Path]] = {}
    with_shared_test_set: set[str] = set()
    for other, path in finished_runs(runs_root):
        identity = other["identity"]
        if identity == own or not comparable_up_to_method(own, identity):
            continue
        variant = _variant(other)
        if any(comparable(result, other, task) for task in result["evaluation"]["tasks"]):
            with_shared_test_set.add(variant)
        elif variant in with_shared_test_set:
            continue
        found[variant] = (other, path)
    order = {
        variant: (_STREAM_ORDER[other["identity"]["method"]["stream"]], other["config"]["gate"]["name"], variant)
        for variant, (other, _) in found.items()
    }
    return [found[variant] for variant in sorted(found, key=order.__getitem__)]


def baselines_of(folder: Path) -> list[ComparedRun]:
    """Return a run's evaluated training-free baselines, sorted by name."""
    return with_labels(_read_results(sorted(folder.glob(f"baselines/*/{FILE}"))))


def comparable_baselines(run: ComparedRun, focus: Result) -> list[ComparedRun]:
    """Return another run's evaluated baselines that are comparable with a result, with the run in their labels."""
    found = _comparable_part(baselines_of(run.folder), focus)
    return [replace(baseline, label=f"{baseline.label} on {run.label}") for baseline in found]


def seeds_of(runs_root: Path, result: Result) -> dict[int, Result]:
    """Return finished runs that differ only in the seed, by seed."""
    own = identity_without_seed(result["identity"])
    found: dict[int, Result] = {
        int(other["identity"]["seed"]): other
        for other, _ in finished_runs(runs_root)
        if "seed" in other["identity"] and identity_without_seed(other["identity"]) == own
    }
    seed = result["identity"].get("seed")
    # the given result is preferred to a finished copy of it, which may be older
    return found | ({} if seed is None else {int(seed): result})


def comparable(one: Result, other: Result, task: str) -> bool:
    """Return whether two results scored the same examples and protocol."""
    entries = [result["evaluation"]["tasks"].get(task) for result in (one, other)]
    if None in entries:
        return False
    one_key, other_key = ((entry.get("test_set"), entry.get("protocol", "strict")) for entry in entries)
    return one_key == other_key


def tests_at_chance(original: Mapping[str, Mapping[str, Any]], tests: Sequence[str]) -> list[str]:
    """Return the tests on which the original is not above chance by two standard errors.

    ``original`` holds the original's entries of `result.json` by task. No average of forgetting tests includes such a
    test, because its scores cannot show forgetting.
    """
    return [task for task in tests if original.get(task, {}).get("above_chance") is False]


def headline(entry: Mapping[str, Any]) -> str:
    """Return a task's headline metric, or its first if that was not computed."""
    named = str(entry["headline"])
    return named if named in entry["metrics"] else next(iter(entry["metrics"]))


def with_labels(found: Sequence[tuple[Result, Path]]) -> list[ComparedRun]:
    """Return results and their folders as runs with distinct labels.

    Runs of one method are distinguished by how their gates differ, and by a frozen adapter.
    """
    results = [result for result, _ in found]
    return [ComparedRun(label=_label(result, results), result=result, folder=folder) for result, folder in found]


def _label(result: Result, results: Sequence[Result]) -> str:
    baseline = result["config"].get("baseline")
    if baseline is not None:
        value = "" if baseline.get("value") is None else f" {format_value(baseline['value'])}"
        return f"{baseline['name'].replace('_', ' ')}{value}"
    gates = [other["config"].get("gate", {}) for other in results if other["method"] == result["method"]]
    details = [_gate_label(result["config"].get("gate", {}), gates)] if len(gates) > 1 else []
    details += ["imported adapter"] if is_imported(result.get("identity", {})) else []
    details += ["frozen adapter"] if "frozen_adapter" in result.get("identity", {}) else []
    return f"{result['method']} ({', '.join(details)})" if details else str(result["method"])


def _gate_label(gate: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """Return a gate's name, rank, and keys that differ between such gates."""
    rank = f" r{gate['rank']}" if gate.get("rank") else ""
    # a key is shown only where name and rank leave two gates equal
    similar = [other for other in gates if all(other.get(key) == gate.get(key) for key in ("name", "rank"))]
    differing = [key for key in gate if any(other.get(key) != gate[key] for other in similar)]
    return f"{gate.get('name', '')}{rank}" + "".join(f" {key}={format_value(gate[key])}" for key in differing)


def _original(folder: Path, result: Result, *, runs_root: Path) -> tuple[Result, Path]:
    """Return the original's result, as recorded by a run, and its folder."""
    try:
        name, identity, config = original_run(result["config"])
    except ValidationError as error:
        raise UserError(
            f"{folder / FILE}: config: is of another version of imsm; run the same command again"
        ) from error
    evaluation = result["evaluation"]
    if not isinstance(evaluation.get("original"), dict):
        raise UserError(
            f"{folder / FILE}: lacks evaluation.original, the scores before training; evaluate the run again "
            "(the same command with mode=evaluate)"
        )
    return {
        **result,
        "name": name,
        "method": "original",
        "identity": identity,
        "config": config,
        "trainable_parameters": {"adapter": 0, "gate": 0},
        "training": None,
        "evaluation": {"settings": evaluation.get("settings", {}), "tasks": evaluation["original"]},
    }, runs_root / name


def finished_runs(runs_root: Path) -> list[tuple[dict[str, Any], Path]]:
    """Return the finished runs under a root with their folders, the newest last."""
    # by time: a later run replaces an older one with the same method
    paths = sorted(runs_root.glob(f"*/{FILE}"), key=lambda path: path.lstat().st_mtime)
    return [(result, path) for result, path in _read_results(paths) if result.get("identity") is not None]


def _read_results(paths: Iterable[Path]) -> list[tuple[dict[str, Any], Path]]:
    found = []
    for path in paths:
        try:
            found.append((read_result(path.parent), path.parent))
        except UserError:
            # damaged or of an older format: no reason to fail the report of another run
            continue
    return found


def _unreadable_results(folder: Path, runs_root: Path) -> list[str]:
    """Return one line for the results of other runs and of baselines that cannot be read."""
    paths = [*sorted(runs_root.glob(f"*/{FILE}")), *sorted(folder.glob(f"baselines/*/{FILE}"))]
    errors = {path: error for path in paths if path.parent != folder and (error := result_error(path.parent))}
    if not errors:
        return []
    first, *others = errors
    names = [str(path.relative_to(path.parents[1])) for path in others[:_MAX_LISTED]]
    names += [f"{len(others) - _MAX_LISTED} more"] if len(others) > _MAX_LISTED else []
    also = f" (also {', '.join(names)})" if names else ""
    return [f"Left out, because its result cannot be read: {errors[first]}{also}."]


def _variant(result: Result) -> str:
    """Return method, gate and frozen adapter; only the newest of each is compared."""
    identity = result["identity"]
    return str([result["method"], sorted(identity.get("gate", {}).items()), "frozen_adapter" in identity])


def _comparable_part(runs: Sequence[ComparedRun], focus: Result) -> list[ComparedRun]:
    """Drop the tasks that are not comparable, and runs without a comparable task."""
    tasks = focus["evaluation"]["tasks"]
    # labels are made again below: without the dropped runs they can be shorter
    kept = [run for run in runs if any(comparable(focus, run.result, task) for task in tasks)]
    return with_labels([(_comparable_tasks(run.result, focus), run.folder) for run in kept])


def _comparable_tasks(result: Result, focus: Result) -> Result:
    """Return a result without the focus's tasks on which it has no comparable score."""
    missing = _missing_tasks(result, focus)
    evaluation = result["evaluation"]
    tasks = {name: entry for name, entry in evaluation["tasks"].items() if name not in missing}
    return {**result, "evaluation": {**evaluation, "tasks": tasks}}


def _missing_tasks(result: Result, focus: Result) -> list[str]:
    return [task for task in focus["evaluation"]["tasks"] if not comparable(focus, result, task)]


def _explain_excluded(
    results: Mapping[str, Result], baselines: Mapping[str, Result], focus: Result, folder: Path
) -> list[str]:
    """Return one line with the exclusions and the commands that fix them."""
    missing = {
        label: tasks
        for label, result in [*results.items(), *baselines.items()]
        if (tasks := _missing_tasks(result, focus))
    }
    if not missing:
        return []
    labels_by_tasks: dict[str, list[str]] = {}
    for label, tasks in missing.items():
        all_tasks = len(tasks) == len(focus["evaluation"]["tasks"])
        labels_by_tasks.setdefault("all tasks" if all_tasks else " and ".join(tasks), []).append(label)
    listed = "; ".join(f"{tasks} of {', '.join(labels)}" for tasks, labels in labels_by_tasks.items())
    fixes = []
    if outdated := [results[label] for label in missing if label in results]:
        overrides = " ".join(["mode=evaluate", *_missing_settings(outdated, focus)])
        fixes.append(f"repeat the command of each excluded run with {overrides}")
    if any(label in baselines for label in missing):
        fixes.append(f"run imsm baselines {shlex.quote(str(folder))}")
    return [
        f"Excluded runs (other test examples or another protocol): {listed}. To include them, {' and '.join(fixes)}, "
        f"then imsm report {shlex.quote(str(folder))}."
    ]


def _missing_settings(others: Sequence[Result], focus: Result) -> list[str]:
    """Return the evaluation settings that another run lacks, as overrides."""
    own = focus["evaluation"].get("settings", {})
    return [
        shlex.quote(f"evaluation.{key}={format_value(own[key])}")
        for key in _TEST_SET_KEYS
        if key in own and any(other["evaluation"].get("settings", {}).get(key) != own[key] for other in others)
    ]


def _list_load_errors(runs: Sequence[ComparedRun], tasks: Sequence[str]) -> list[str]:
    lines = []
    for run in runs:
        errors = {task: error for task in tasks if (error := run.load_error(task)) is not None}
        if errors:
            first, *more = errors
            others = f" (also {', '.join(more)})" if more else ""
            lines.append(f"{run.label}: {errors[first]}{others}. Statistics of these predictions are omitted.")
    return lines
