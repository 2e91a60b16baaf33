"""Everything that the sections of a report read; each statistic is computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from imsm.evaluation.statistics.intervals import Interval
from imsm.reporting.paired_comparison import (
    PairedComparison,
    Retention,
    adjust_p_values,
    compare_runs,
    compute_retention,
    score_interval,
)
from imsm.reporting.runs import (
    ComparedRun,
    baselines_of,
    build_comparison_set,
    comparable_baselines,
    headline,
    tests_at_chance,
)
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint, matching_baselines, tradeoff_curves, tradeoff_points

REFERENCES = ("original", "peft")
"""Methods that other runs are compared with."""


@dataclass(kw_only=True)
class ReportData:
    """The runs of a report and what was computed from them.

    ``runs``, ``baselines`` and ``seeds`` are those of `imsm.reporting.runs.ComparisonSet`.
    """

    runs: list[ComparedRun]
    baselines: list[ComparedRun]
    peft_baselines: list[ComparedRun]  # baselines of the compared PEFT run
    seeds: dict[str, dict[int, Mapping[str, Any]]]
    target: str | None  # the task that was learned, if it was evaluated
    tasks: list[str]  # all tasks, the target first
    metrics: dict[str, str]  # headline metric by task
    trained_on: set[str]  # forgetting tests that a compared run was trained on

    @property
    def focus(self) -> ComparedRun:
        """The run that the report is about."""
        return self.runs[-1]

    @property
    def by_method(self) -> dict[str, ComparedRun]:
        """The last run of each method."""
        return {run.method: run for run in self.runs}

    @property
    def common(self) -> list[str]:
        """The tasks that every run has a score of."""
        return [task for task in self.tasks if all(self.mean(run, [task]) is not None for run in self.runs)]

    @property
    def forgetting(self) -> list[str]:
        """The common forgetting tests that no compared run was trained on."""
        return [task for task in self.common if task != self.target and task not in self.trained_on]

    @property
    def at_chance(self) -> list[str]:
        """The forgetting tests on which the original is not above chance by two standard errors."""
        original = self.by_method.get("original")
        recorded = {} if original is None else original.result["evaluation"]["tasks"]
        # results of earlier versions do not record it; their predictions show it
        unrecorded = [task for task in self.forgetting if recorded.get(task, {}).get("above_chance") is None]
        found = [(task, self._all_retentions[self.focus.label, task]) for task in unrecorded]
        shown = [task for task, retention in found if retention is not None and retention.retained is None]
        named = {*tests_at_chance(recorded, self.forgetting), *shown}
        return [task for task in self.forgetting if task in named]

    @property
    def informative(self) -> list[str]:
        """The forgetting tests that averages are over: those on which the original is above chance."""
        return [task for task in self.forgetting if task not in self.at_chance]

    @property
    def marked(self) -> set[str]:
        """Tasks shown with a †: ``trained_on``, and a target that is also a test."""
        tests = self.focus.result["evaluation"].get("settings", {}).get("tasks", [])
        learned = any(run.task_result(self.target or "").get("trained_on") for run in self.runs)
        return self.trained_on | {task for task in tests if task == self.target and learned}

    @property
    def pairs(self) -> list[tuple[ComparedRun, ComparedRun]]:
        """The runs and the references that they are compared with."""
        found = self.by_method
        return [
            (run, found[name])
            for run in self.runs
            for name in REFERENCES
            if name in found and run is not found[name] and run.method != "original"
        ]

    @cached_property
    def score_intervals(self) -> dict[tuple[str, str], Interval]:
        """Headline score with its interval by task and run label, where predictions exist."""
        return {
            (task, run.label): interval
            for task in self.tasks
            for run in self.runs
            if (interval := score_interval(run, task, self.metrics[task])) is not None
        }

    @cached_property
    def comparisons(self) -> list[PairedComparison]:
        """Paired comparisons of all pairs on all tasks, where predictions exist."""
        every = [
            compare_runs(run, reference, task=task, metric=self.metrics[task], trained_on=task in self.trained_on)
            for task in self.tasks
            for run, reference in self.pairs
        ]
        found = [comparison for comparison in every if comparison is not None]
        # Holm needs the complete family, so the p-values are adjusted at the end
        adjust_p_values(found)
        return found

    @cached_property
    def retentions(self) -> list[Retention]:
        """Retention by task and run, where predictions exist."""
        return [
            found
            for task in self.tasks
            for run in self.runs
            if run.method != "original" and (found := self._all_retentions[run.label, task]) is not None
        ]

    @cached_property
    def points(self) -> list[TradeoffPoint]:
        """Trade-off points of runs and own baselines; none without an original."""
        return self._points(self.baselines)

    @cached_property
    def peft_points(self) -> list[TradeoffPoint]:
        """Trade-off points of runs and of the PEFT run's baselines."""
        return self._points(self.peft_baselines) if self.peft_baselines else []

    def _points(self, baselines: Sequence[ComparedRun]) -> list[TradeoffPoint]:
        if self.target is None or "original" not in self.by_method or len(self.runs) < 2:
            return []
        # the interval, not the estimate: a share of a gain by chance means nothing
        found = [c for c in self.comparisons if (c.task, c.reference) == (self.target, "original")]
        peft = self.by_method.get("peft")
        runs = [*self.runs, *baselines]
        every = self._all_retentions
        return tradeoff_points(
            runs,
            [{t: r.retained for t in self.forgetting if (r := every[run.label, t]) is not None} for run in runs],
            target=self.target,
            metric=self.metrics[self.target],
            forgetting=self.forgetting,
            peft_gained=peft is not None and any(c.run == peft.label and c.difference.low > 0 for c in found),
        )

    @cached_property
    def curves(self) -> list[TradeoffCurve]:
        """Trade-off curves of swept baselines."""
        return tradeoff_curves(self.points)

    @cached_property
    def matches(self) -> dict[str, list[str]]:
        """The training-free baselines at least as good as each run, by its label."""
        own = matching_baselines(self.points, self.curves)
        peft = self.by_method.get("peft")
        if peft is None or not self.peft_points:
            return own
        found = matching_baselines(self.peft_points, tradeoff_curves(self.peft_points))
        suffix = f" on {peft.label}"
        on_peft = {run: [name.removesuffix(suffix) + suffix for name in names] for run, names in found.items()}
        return {run: [*own.get(run, []), *on_peft.get(run, [])] for run in {**own, **on_peft}}

    # points need the baselines too, and forgetting tests in another selection than `retentions`
    @cached_property
    def _all_retentions(self) -> dict[tuple[str, str], Retention | None]:
        original = self.by_method.get("original")
        return {
            (run.label, task): None
            if original is None
            else compute_retention(run, original, task=task, metric=self.metrics[task])
            for run in [*self.runs, *self.baselines, *self.peft_baselines]
            for task in self.tasks
        }

    def name(self, task: str) -> str:
        """Return a task's name, marked as the target and, with †, as trained on by a run."""
        return f"{task}{' (target)' if task == self.target else ''}{' †' if task in self.marked else ''}"

    def mean(self, run: ComparedRun, tasks: Sequence[str]) -> float | None:
        """Return a run's mean headline score over tasks; None if it lacks one of them."""
        values = [run.score(task, self.metrics[task]) for task in tasks]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None

    def kl_to_original(self, run: ComparedRun, tasks: Sequence[str]) -> float | None:
        """Return a run's mean KL divergence from the original over tasks, in nats; None if it lacks one of them."""
        values = [run.task_result(task).get("kl_to_original") for task in tasks]
        known = [float(value) for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None


def build_report_data(
    runs: Sequence[ComparedRun],
    baselines: Sequence[ComparedRun] = (),
    seeds: Mapping[str, dict[int, Mapping[str, Any]]] | None = None,
) -> ReportData:
    """Select what a report shows of the runs, baselines and seeds of a `ComparisonSet`."""
    entries = runs[-1].result["evaluation"]["tasks"]
    target = next((name for name, entry in entries.items() if entry["role"] == "target"), None)
    # the target first; the sort is stable, so the tests keep their order
    tasks = sorted(entries, key=lambda name: name != target)
    trained_on = {task for task in tasks for run in runs if run.task_result(task).get("trained_on")}
    peft = [run for run in runs[:-1] if run.method == "peft"][-1:]
    return ReportData(
        runs=list(runs),
        baselines=list(baselines),
        peft_baselines=[baseline for run in peft for baseline in comparable_baselines(run, runs[-1].result)],
        seeds=dict(seeds or {}),
        target=target,
        tasks=tasks,
        metrics={task: headline(entries[task]) for task in tasks},
        trained_on=trained_on - {target},
    )


def baselines_as_good(folder: Path, result: Mapping[str, Any], *, runs_root: Path) -> list[str] | None:
    """Return the training-free baselines at least as good as a run; None if none were evaluated."""
    has_original = isinstance(result["evaluation"].get("original"), dict)
    # most runs have no baselines, and a comparison reads every run
    if not has_original or not (baselines_of(folder) or any(runs_root.glob("*/baselines/*/result.json"))):
        return None
    found = build_comparison_set(folder, result, runs_root=runs_root)
    data = build_report_data(found.runs, found.baselines)
    if not data.baselines and not data.peft_baselines:
        return None
    return data.matches.get(data.focus.label, [])
