"""Arms against each other on the same items: differences with intervals, tests, what was kept.

All numbers are in points (0 to 100) unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy

from imsm.evaluation.metrics import aggregate, metric_module
from imsm.evaluation.statistics.bootstrap import standard_error
from imsm.evaluation.statistics.forgetting import OutcomeTransitions, chance_level, retention, transitions
from imsm.evaluation.statistics.significance import (
    Interval,
    McNemar,
    bootstrap_statistic_ci,
    holm,
    mcnemar,
    mean_ci,
    minimum_detectable_difference,
    paired_difference,
    proportion_ci,
)
from imsm.reporting.runs import ComparedRun

if TYPE_CHECKING:
    import pandas

RIGHT = 0.5
"""A score from here on counts as a right answer where one is counted."""


@dataclass(kw_only=True)
class PairedComparison:
    """One arm against another on a task's headline metric.

    ``test`` is McNemar's, None for scores that are neither right nor wrong; ``adjusted`` is its p
    over the card's family, None where the cell is marked; ``least``: the difference that this many
    items show with a power of 80 %.
    """

    task: str
    metric: str
    arm: str
    reference: str
    marked: bool
    difference: Interval
    test: McNemar | None
    adjusted: float | None
    minimum_detectable: float | None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What an arm made of what the original knew; ``retained`` in percent, corrected for chance."""

    task: str
    arm: str
    marked: bool
    counts: OutcomeTransitions
    chance: float
    retained: float | None


def total_of(arm: ComparedRun, task: str, metric: str) -> tuple[float, Interval] | None:
    """An arm's total on a task and its interval; None without items.

    Where all answers are right, or all wrong, no bootstrap has a width: there it is Wilson's.
    """
    items = arm.items(task)
    if items is None or f"score.{metric}" not in items:
        return None
    groups = _groups(items)
    total = _total(arm, task, metric, items)
    scores = items[f"score.{metric}"].to_numpy(float)
    if total is not None:
        found = bootstrap_statistic_ci(total, None, items=len(items), groups=groups)
    elif set(scores) in ({0.0}, {1.0}):
        found = _in_points(proportion_ci(scores, groups=groups))
    else:
        found = mean_ci(100 * scores, groups=groups)
    return found.estimate, found


def _in_points(share: Interval) -> Interval:
    low, middle, high = (100 * value for value in (share.low, share.estimate, share.high))
    return replace(share, low=low, estimate=middle, high=high)


def contrast(
    arm: ComparedRun, reference: ComparedRun, *, task: str, metric: str, marked: bool
) -> PairedComparison | None:
    """One arm against another; None where items are missing or not the same."""
    pair = _pair(arm, reference, task)
    if pair is None or f"score.{metric}" not in pair[0] or f"score.{metric}" not in pair[1]:
        return None
    one, other = (items[f"score.{metric}"].to_numpy(float) for items in pair)
    groups = _groups(pair[0])
    total, reference_total = _total(arm, task, metric, pair[0]), None
    if total is None:
        difference = paired_difference(100 * one, 100 * other, groups=groups)
    else:
        reference_total = _total(reference, task, metric, pair[1])
        difference = bootstrap_statistic_ci(total, reference_total, items=len(one), groups=groups)
    binary = set(numpy.unique(numpy.concatenate([one, other]))) <= {0.0, 1.0}
    return PairedComparison(
        task=task,
        metric=metric,
        arm=arm.label,
        reference=reference.label,
        marked=marked,
        difference=difference,
        test=mcnemar(one, other) if binary else None,
        adjusted=None,
        minimum_detectable=minimum_detectable_difference(100 * one, 100 * other, groups=groups),
    )


def adjust(contrasts: Sequence[PairedComparison]) -> None:
    """Holm over the family: every contrast of a card that is not marked and has a test."""
    family = {
        str(place): each.test.p_value
        for place, each in enumerate(contrasts)
        if each.test is not None and not each.marked
    }
    for place, value in holm(family).items():
        contrasts[int(place)].adjusted = value


def kept(arm: ComparedRun, original: ComparedRun, *, task: str, metric: str, marked: bool) -> Retention | None:
    """What of the original's knowledge an arm kept; None where items are missing."""
    pair = _pair(arm, original, task)
    if pair is None or f"score.{metric}" not in pair[0] or f"score.{metric}" not in pair[1]:
        return None
    after, before = (items[f"score.{metric}"].to_numpy(float) for items in pair)
    chance = chance_level(list(pair[1]["references"]))
    return Retention(
        task=task,
        arm=arm.label,
        marked=marked,
        counts=transitions(before >= RIGHT, after >= RIGHT),
        chance=chance,
        retained=retention(
            100 * float(after.mean()),
            100 * float(before.mean()),
            chance=chance,
            items=len(before),
            error=_error(before, _groups(pair[1])),
        ),
    )


def _error(values: numpy.ndarray, groups: Sequence[Any]) -> float | None:
    """The mean's standard error over groups, in points; None where nothing varies."""
    error, _ = standard_error(values, groups)
    return 100 * error if error else None


def _pair(one: ComparedRun, other: ComparedRun, task: str) -> tuple[pandas.DataFrame, pandas.DataFrame] | None:
    """Both arms' items in one order; None where one lacks some."""
    mine, theirs = one.items(task), other.items(task)
    if mine is None or theirs is None or set(mine.index) != set(theirs.index) or mine.empty:
        return None
    return mine, theirs.loc[mine.index]


def _groups(items: pandas.DataFrame) -> list[Any]:
    return [group or name for name, group in zip(items.index, items["group"], strict=True)]


def _total(
    arm: ComparedRun, task: str, metric: str, items: pandas.DataFrame
) -> Callable[[numpy.ndarray], float] | None:
    """The metric over chosen items, in points, where it is no mean of theirs; else None."""
    modules = arm.result["config"].get("metrics", {})
    module = metric_module(modules.get(metric, metric))
    if not hasattr(module, "aggregate"):
        return None
    released = arm.entry(task).get("protocols", {}).get("paper_code", {}).get("metrics", {})
    texts = list(items["response" if metric in released else "answer"])
    golds = list(items["references"])

    def total(places: numpy.ndarray) -> float:
        chosen = [texts[place] for place in places]
        return module.INFO.scale * aggregate(module, chosen, [golds[place] for place in places])

    return total
