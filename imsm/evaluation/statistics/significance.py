"""Significance tests of two runs on the same examples, or trained with several seeds.

Symbols: N examples, C groups of examples that share a passage, S seeds. Intervals are in
`imsm.evaluation.statistics.intervals`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.power import TTestPower

from imsm.evaluation.statistics.bootstrap import standard_error
from imsm.evaluation.statistics.validation import (
    NOISE,
    all_equal,
    as_binary_array,
    as_finite_array,
    check_level,
    paired_difference_array,
)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Number of examples only the first run got right (``better``), only the second (``worse``), and p."""

    better: int
    worse: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class TTest:
    """A difference of means over seeds; ``t`` and ``p_value`` are None if the seeds do not vary."""

    difference: float
    t: float | None
    degrees: float
    p_value: float | None


def mcnemar(one: ArrayLike, other: ArrayLike) -> McNemar:
    """Run McNemar's exact test on right (1) and wrong (0) answers to the same N examples.

    Raises:
        ValueError: A value other than 0 and 1, or unequal numbers of examples.
    """
    difference = paired_difference_array(as_binary_array(one), as_binary_array(other))
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    discordant = better + worse
    # Exact: the usual chi-squared approximation fails for few discordant pairs.
    p_value = float(stats.binomtest(better, discordant).pvalue) if discordant else 1.0
    return McNemar(better=better, worse=worse, p_value=p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of a declared family by Holm's method; keys are kept.

    Raises:
        ValueError: A value is not between 0 and 1; leave out tests without a p-value.
    """
    if not p_values:
        return {}
    invalid = {name: value for name, value in p_values.items() if not 0 <= value <= 1}
    if invalid:
        raise ValueError(f"p_values={invalid}: must be between 0 and 1")
    # not statsmodels' multipletests, which collects garbage in each call: half a second with torch's objects
    names = sorted(p_values, key=p_values.__getitem__)
    factors = numpy.arange(len(names), 0, -1)
    adjusted = numpy.maximum.accumulate(factors * [p_values[name] for name in names]).clip(max=1)
    found = dict(zip(names, map(float, adjusted), strict=True))
    return {name: found[name] for name in p_values}


def student_t(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Run Student's t-test (the paper's) on two runs' scores over seeds; None below 2 seeds each."""
    first, second = as_finite_array(one), as_finite_array(other)
    if min(len(first), len(second)) < 2:
        return None
    difference = float(first.mean() - second.mean())
    degrees = len(first) + len(second) - 2
    # Rounding grows with the scores, so the limit is relative to the largest.
    scale = float(numpy.abs(numpy.concatenate([first, second])).max())
    # Without variation t is infinite, or rounding noise.
    if max(numpy.ptp(first), numpy.ptp(second)) <= NOISE * scale:
        return TTest(difference=difference, t=None, degrees=degrees, p_value=None)
    result = stats.ttest_ind_from_stats(
        *(value for scores in (first, second) for value in (scores.mean(), scores.std(ddof=1), len(scores)))
    )
    return TTest(difference=difference, t=float(result.statistic), degrees=degrees, p_value=float(result.pvalue))


def minimum_detectable_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    power: float = 0.8,
    level: float = 0.95,
) -> float | None:
    """Return the smallest mean difference that N pairs of this variance detect with this power.

    None if the pairs do not vary, or form fewer than 3 groups.
    """
    error, count = standard_error(paired_difference_array(one, other), groups)
    if count < 3 or all_equal(one, other) or not error:
        return None
    # C groups act as C independent pairs; their standard deviation is error * sqrt(C).
    effect = TTestPower().solve_power(nobs=count, alpha=1 - check_level(level), power=power)
    # statsmodels returns a number or an array of one number.
    return float(numpy.squeeze(effect) * error * count**0.5)


def roc_auc(values: ArrayLike, right: ArrayLike) -> float | None:
    """Return the area under the ROC curve of a value as a predictor of right answers.

    1/2 is chance; None if all answers are right or all wrong.

    Raises:
        ValueError: No values, a value that is not finite, or unequal counts.
    """
    scores, labels = as_finite_array(values), as_binary_array(right) > 0
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} values against {len(labels)} answers: needs one each")
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, scores))
