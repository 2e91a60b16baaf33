"""What was forgotten, in the measures of the field; scores in points, shares from 0 to 1.

Symbols: b the original's score on a task, s the tuned arm's, c the chance level, T the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy
from numpy.typing import ArrayLike, NDArray

from imsm.data.answer_text import yes_or_no
from imsm.evaluation.statistics.intervals import Interval, proportion_ci
from imsm.evaluation.statistics.validation import as_finite_array

_ERRORS = 2.0
"""An original that is not so many standard errors above chance has nothing to retain."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTransitions:
    """N items by what the original and the tuned arm made of them."""

    kept: int
    forgotten: int
    learned: int
    never_known: int

    @property
    def items(self) -> int:
        """N."""
        return self.kept + self.forgotten + self.learned + self.never_known


def transitions(original: ArrayLike, tuned: ArrayLike) -> OutcomeTransitions:
    """Count N items, right (1) or wrong (0) before and after; a share counts from 1/2 on.

    Raises:
        ValueError: no items, not the same number, or a value that is not finite.
    """
    return OutcomeTransitions(**{kind: int(of.sum()) for kind, of in _kinds(original, tuned).items()})


def transition_shares(
    original: ArrayLike, tuned: ArrayLike, *, groups: Sequence[object] | None = None, level: float = 0.95
) -> dict[str, Interval]:
    """Each kind's share of all N items with its interval, by the names of `Transitions`.

    Args:
        original: (N,), right (1) or wrong (0).
        tuned: (N,).
        groups: N labels, None where an item is its own group; None: each is.
        level: of the intervals.

    Raises:
        ValueError: as `transitions`, or not as many labels as items.
    """
    return {kind: proportion_ci(of, groups=groups, level=level) for kind, of in _kinds(original, tuned).items()}


def chance_level(golds: Sequence[Sequence[str]]) -> float:
    """What always the same answer scores, in points: the larger class of yes/no golds, else 0.

    It is the chance level of accuracy and exact match; that of Matthews' correlation is 0.
    """
    labels = [yes_or_no(accepted[0]) if accepted else "" for accepted in golds]
    if not labels or not all(labels):
        return 0.0
    return 100.0 * max(Counter(labels).values()) / len(labels)


def retention(score: float, original: float, *, chance: float, items: int, error: float | None = None) -> float | None:
    """100 (s − c) / (b − c), in percent; None where b is not above c by two standard errors.

    The error is that of a share of ``items``; at 0 and at 100 points it is that of one item less.

    Args:
        score: s, in points.
        original: b, in points.
        chance: c, in points.
        items: how many the scores are over.
        error: b's standard error in points, such as that over passages; None: from ``items``.

    Raises:
        ValueError: a score that is not finite.
    """
    as_finite_array([score, original, chance])
    if items < 1:
        return None
    if error is None:
        share = min(max(original / 100, 1 / (items + 1)), items / (items + 1))
        error = 100 * (share * (1 - share) / items) ** 0.5
    if original <= chance + _ERRORS * error:
        return None
    return 100 * (score - chance) / (original - chance)


def stability(retentions: Mapping[str, float | None]) -> float | None:
    """S: the mean retention over the tasks where it is defined, in percent; None without any."""
    defined = [value for value in retentions.values() if value is not None]
    return fmean(defined) if defined else None


def plasticity(score: float, *, original: float, peft: float) -> float | None:
    """P = 100 (s_T − b_T) / (s_T^PEFT − b_T), in percent; None where PEFT learned nothing."""
    gain = peft - original
    return 100 * (score - original) / gain if gain > 0 else None


def harmonic_mean(one: float | None, other: float | None) -> float | None:
    """Of plasticity and stability; 0 where one is not positive, None where one is undefined."""
    if one is None or other is None:
        return None
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area that points (P, S) dominate above a reference: the union of their rectangles.

    Raises:
        ValueError: a coordinate that is not finite.
    """
    as_finite_array([*reference, *(each for point in points for each in point)])
    above = sorted({(x, y) for x, y in points if x > reference[0] and y > reference[1]}, reverse=True)
    area, top = 0.0, reference[1]
    for x, y in above:  # from the right: only what is higher than all before adds a strip
        if y > top:
            area += (x - reference[0]) * (y - top)
            top = y
    return area


def retention_at_target(frontier: Sequence[tuple[float, float]], target: float) -> float | None:
    """The retention that a swept control reaches at a given target score.

    Args:
        frontier: (target score, retention) of each swept value, in the order of the sweep.
        target: the score to be matched.

    Returns:
        Linear between the neighbours in the sweep; of several crossings the best. None where
        the sweep does not reach the score.

    Raises:
        ValueError: a number that is not finite.
    """
    as_finite_array([target, *(each for point in frontier for each in point)])
    found = [retained for score, retained in frontier if score == target]
    for (score, retained), (next_score, next_retained) in pairwise(frontier):
        if min(score, next_score) < target < max(score, next_score):
            share = (target - score) / (next_score - score)
            found.append(retained + share * (next_retained - retained))
    return max(found) if found else None


def target_average(columns: Mapping[str, float | None]) -> float | None:
    """The paper's "Avg." of table 1: the plain mean over every metric of every target task.

    A task with two metrics (MRPC, ROPES) counts twice.

    Args:
        columns: scores in points by column, None where one is missing.

    Returns:
        None where a column is missing, or there is none: an average of others is another number.
    """
    found = [value for value in columns.values() if value is not None]
    return fmean(found) if found and len(found) == len(columns) else None


def retention_average(target: float | None, others: Mapping[str, float | None]) -> float | None:
    """The paper's "Avg." of tables 2 and 3: the plain mean over the target and the other tasks.

    It mixes what was learned with what was kept; `stability` leaves the target out.

    Args:
        target: the score on the tuned task, in points.
        others: scores in points by task, None where one is missing.
    """
    return target_average({"": target, **others}) if others else None


def _kinds(original: ArrayLike, tuned: ArrayLike) -> dict[str, NDArray[numpy.bool_]]:
    """Which items are of which kind (N,)."""
    before, after = (as_finite_array(each) >= 0.5 for each in (original, tuned))
    if before.shape != after.shape:
        raise ValueError(f"{before.size} items against {after.size}: a pair needs both")
    return {
        "kept": before & after,
        "forgotten": before & ~after,
        "learned": ~before & after,
        "never_known": ~before & ~after,
    }
