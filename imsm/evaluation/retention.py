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
from numpy.typing import ArrayLike

from imsm.data.answers import yes_or_no

_ERRORS = 2.0
"""An original that is not so many standard errors above chance has nothing to retain."""


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """N items by what the original and the tuned arm made of them."""

    kept: int
    forgotten: int
    learned: int
    never_known: int

    @property
    def items(self) -> int:
        """N."""
        return self.kept + self.forgotten + self.learned + self.never_known


def transitions(original: ArrayLike, tuned: ArrayLike) -> Transitions:
    """Count N items, right (1) or wrong (0) before and after; a share counts from 1/2 on.

    Raises:
        ValueError: not the same number of items.
    """
    before, after = (numpy.asarray(each, dtype=float) >= 0.5 for each in (original, tuned))
    if before.shape != after.shape:
        raise ValueError(f"{before.size} items against {after.size}: a pair needs both")
    return Transitions(
        kept=int((before & after).sum()),
        forgotten=int((before & ~after).sum()),
        learned=int((~before & after).sum()),
        never_known=int((~before & ~after).sum()),
    )


def chance_level(golds: Sequence[Sequence[str]]) -> float:
    """What always the same answer scores, in points: the larger class of yes/no golds, else 0."""
    labels = [yes_or_no(accepted[0]) for accepted in golds]
    if not labels or not all(labels):
        return 0.0
    return 100.0 * max(Counter(labels).values()) / len(labels)


def retention(score: float, original: float, *, chance: float, items: int) -> float | None:
    """100 (s − c) / (b − c), in percent; None where b is not above c by two standard errors.

    The error is that of a share of ``items``; at 0 and at 100 points it is that of one item less.

    Args:
        score: s, in points.
        original: b, in points.
        chance: c, in points.
        items: how many the scores are over.
    """
    if items < 1:
        return None
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


def hypervolume(
    points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """The area that points (P, S) dominate above a reference: the union of their rectangles."""
    above = sorted(
        {(x, y) for x, y in points if x > reference[0] and y > reference[1]}, reverse=True
    )
    area, top = 0.0, reference[1]
    for x, y in above:  # from the right: only what is higher than all before adds a strip
        if y > top:
            area += (x - reference[0]) * (y - top)
            top = y
    return area


def at_matched_target(frontier: Sequence[tuple[float, float]], target: float) -> float | None:
    """The retention that a swept control reaches at a given target score.

    Args:
        frontier: (target score, retention) of each swept value, in the order of the sweep.
        target: the score to be matched.

    Returns:
        Linear between the neighbours in the sweep; of several crossings the best. None where
        the sweep does not reach the score.
    """
    found = [retained for score, retained in frontier if score == target]
    for (score, retained), (next_score, next_retained) in pairwise(frontier):
        if min(score, next_score) < target < max(score, next_score):
            share = (target - score) / (next_score - score)
            found.append(retained + share * (next_retained - retained))
    return max(found) if found else None
