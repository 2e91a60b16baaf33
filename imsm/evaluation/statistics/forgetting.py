"""Measures of forgetting; scores in points, shares from 0 to 1.

Symbols: b the original's score on a task, s the tuned run's, c the chance level, T the target.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import fmean

import numpy
from numpy.typing import ArrayLike

from imsm.data.answer_text import yes_or_no
from imsm.evaluation.statistics.validation import as_finite_array

_MIN_STANDARD_ERRORS = 2.0
"""Retention is undefined if the original is not this many standard errors above chance."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTransitions:
    """Number of examples by outcome before and after tuning."""

    kept: int
    forgotten: int
    learned: int
    never_known: int

    @property
    def items(self) -> int:
        """Total number of examples."""
        return self.kept + self.forgotten + self.learned + self.never_known


OUTCOMES = tuple(field.name for field in fields(OutcomeTransitions))
"""Outcomes of an example: kept, forgotten, learned, never_known."""


def outcomes(original: ArrayLike, tuned: ArrayLike) -> list[str]:
    """Return the outcome of each of N examples, one of `OUTCOMES`; a score of at least 1/2 counts as right.

    Raises:
        ValueError: No examples, unequal numbers, or a value that is not finite.
    """
    before, after = (as_finite_array(values) >= 0.5 for values in (original, tuned))
    if before.shape != after.shape:
        raise ValueError(f"{before.size} examples against {after.size}: a pair needs both")
    names: list[str] = numpy.select([before & after, before, after], OUTCOMES[:3], OUTCOMES[3]).tolist()
    return names


def transitions(original: ArrayLike, tuned: ArrayLike) -> OutcomeTransitions:
    """Count N examples by their `outcomes`, with the same arguments and errors."""
    counts = Counter(outcomes(original, tuned))
    return OutcomeTransitions(**{name: counts[name] for name in OUTCOMES})


def chance_level(references: Sequence[Sequence[str]]) -> float:
    """Return the score of the best constant answer: the larger class of yes/no references, else 0.

    In points. The chance level of accuracy and exact match; that of Matthews correlation is 0.
    """
    labels = [yes_or_no(accepted[0]) if accepted else "" for accepted in references]
    if not labels or not all(labels):
        return 0.0
    return 100.0 * max(Counter(labels).values()) / len(labels)


def retention(score: float, original: float, *, chance: float, items: int, error: float | None = None) -> float | None:
    """Compute 100 (s − c) / (b − c), in percent; None if b is not two standard errors above c.

    ``score`` is s, ``original`` b, ``chance`` c, ``items`` the number of examples. ``error`` is b's
    standard error, e.g. cluster-robust; None: binomial, at 0 and 100 points that of one example less.

    Raises:
        ValueError: A score that is not finite.
    """
    as_finite_array([score, original, chance])
    # Close to chance the denominator is noise, and retention could have any value.
    if not is_above_chance(original, chance=chance, items=items, error=error):
        return None
    return 100 * (score - chance) / (original - chance)


def is_above_chance(score: float, *, chance: float, items: int, error: float | None = None) -> bool:
    """Return whether a score is two standard errors above the chance level; the arguments are those of `retention`."""
    if items < 1:
        return False
    if error is None:
        # At 0 and 100 points the binomial error would be 0.
        share = min(max(score / 100, 1 / (items + 1)), items / (items + 1))
        error = 100 * (share * (1 - share) / items) ** 0.5
    return score > chance + _MIN_STANDARD_ERRORS * error


def stability(retentions: Mapping[str, float | None]) -> float | None:
    """Return S: the mean of the defined retentions, in percent; None if there is none."""
    defined = [value for value in retentions.values() if value is not None]
    return fmean(defined) if defined else None


def plasticity(score: float, *, original: float, peft: float) -> float | None:
    """Compute P = 100 (s_T − b_T) / (s_T^PEFT − b_T), in percent; None if PEFT learned nothing."""
    gain = peft - original
    return 100 * (score - original) / gain if gain > 0 else None


def harmonic_mean(one: float | None, other: float | None) -> float | None:
    """Average plasticity and stability; 0 if one is not positive, None if one is undefined."""
    if one is None or other is None:
        return None
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Return the area that points (P, S) dominate above a reference: the union of their rectangles.

    Raises:
        ValueError: A coordinate that is not finite.
    """
    as_finite_array([*reference, *(value for point in points for value in point)])
    above = sorted({(x, y) for x, y in points if x > reference[0] and y > reference[1]}, reverse=True)
    area, top = 0.0, reference[1]
    # From the right: only a point that is higher than all before adds a strip.
    for x, y in above:
        if y > top:
            area += (x - reference[0]) * (y - top)
            top = y
    return area


def retention_at_target(frontier: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the retention that a swept baseline reaches at a given target score.

    ``frontier`` holds (target score, retention) in the order of the sweep, between whose neighbors the
    result is interpolated linearly; of several crossings the best. None if the score is not reached.

    Raises:
        ValueError: A number that is not finite.
    """
    as_finite_array([target, *(value for point in frontier for value in point)])
    found = [retained for score, retained in frontier if score == target]
    for (score, retained), (next_score, next_retained) in pairwise(frontier):
        if min(score, next_score) < target < max(score, next_score):
            fraction = (target - score) / (next_score - score)
            found.append(retained + fraction * (next_retained - retained))
    return max(found) if found else None
