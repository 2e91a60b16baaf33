"""What a report card rests on: arms, controls and seeds, and what was computed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from imsm.reporting.paired_comparison import PairedComparison, Retention, adjust, contrast, kept
from imsm.reporting.runs import ComparedRun
from imsm.reporting.score_table import headline
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint, tradeoff_curves, tradeoff_points


@dataclass(kw_only=True)
class ReportData:
    """What the card rests on: arms, controls, other seeds, and what was computed of them."""

    arms: list[ComparedRun]
    controls: list[ComparedRun]
    seeds: dict[str, dict[int, Mapping[str, Any]]]
    """By arm's label, the results of runs that differ in nothing but the seed."""
    target: str | None
    tasks: list[str]
    metrics: dict[str, str]
    marked: set[str]
    contrasts: list[PairedComparison]
    kept: list[Retention]
    trades: list[TradeoffPoint]
    curves: list[TradeoffCurve]

    @property
    def focus(self) -> ComparedRun:
        """The arm that the card is about."""
        return self.arms[-1]

    @property
    def common(self) -> list[str]:
        """The tasks that every arm has a score of, in order."""
        return [t for t in self.tasks if all(self.mean(arm, [t]) is not None for arm in self.arms)]

    @property
    def forgetting(self) -> list[str]:
        """The tests that count: every arm has a score of them, none was trained on them."""
        return [t for t in self.common if t != self.target and t not in self.marked]

    def name(self, task: str) -> str:
        """A task's name with its marks: the target, or † where an arm was trained on it."""
        return f"{task}{' (target)' if task == self.target else ' †' if task in self.marked else ''}"

    def mean(self, arm: ComparedRun, tasks: Sequence[str]) -> float | None:
        """An arm's mean headline over tasks, in points; None if one was not asked."""
        values = [arm.entry(task).get("metrics", {}).get(self.metrics[task]) for task in tasks]
        return fmean(values) if values and None not in values else None


def build_report_data(
    arms: Sequence[ComparedRun],
    controls: Sequence[ComparedRun] = (),
    seeds: Mapping[str, dict[int, Mapping[str, Any]]] | None = None,
) -> ReportData:
    """Compute everything that a card shows beside its scores.

    Args:
        arms: the original first, the run that the card is about last; they and all others hold
            only what may be compared (`imsm.reporting.runs`).
        controls: of that run.
        seeds: by arm's label, results by seed.
    """
    focus = arms[-1]
    entries = focus.result["evaluation"]["tasks"]
    target = next((name for name, e in entries.items() if e["role"] == "target"), None)
    if focus.method == "original":
        target = None
    tasks = sorted(entries, key=lambda name: name != target)
    metrics = {task: headline(entries[task]) for task in tasks}
    marked = {task for task in tasks for arm in arms if arm.entry(task).get("trained_on") and task != target}
    by_method = {arm.method: arm for arm in arms}
    contrasts = []
    for task in tasks:
        for arm in arms:
            for name in ("original", "peft"):
                reference = by_method.get(name)
                if reference is None or arm is reference or arm.method == "original":
                    continue
                found = contrast(arm, reference, task=task, metric=metrics[task], marked=task in marked)
                contrasts += [] if found is None else [found]
    adjust(contrasts)
    original = by_method.get("original")
    changed = [arm for arm in arms if arm.method != "original"]
    made = [
        kept(arm, original, task=task, metric=metrics[task], marked=task in marked)
        for task in tasks
        for arm in changed
        if original is not None
    ]
    evidence = ReportData(
        arms=list(arms),
        controls=list(controls),
        seeds=dict(seeds or {}),
        target=target,
        tasks=tasks,
        metrics=metrics,
        marked=marked,
        contrasts=contrasts,
        kept=[each for each in made if each is not None],
        trades=[],
        curves=[],
    )
    evidence.trades = tradeoff_points(arms, controls, target=target, metrics=metrics, forgetting=evidence.forgetting)
    evidence.curves = tradeoff_curves(evidence.trades)
    return evidence
