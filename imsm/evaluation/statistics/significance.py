"""Tests for two arms that answered the same items or were trained with several seeds.

Legend: N items, C groups of items that share a passage, S seeds. The intervals stand in
`imsm.evaluation.statistics.intervals` and are to be had from here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike
from scipy import stats

from imsm.evaluation.statistics.bootstrap import standard_error
from imsm.evaluation.statistics.intervals import (
    Interval,
    bootstrap_statistic_ci,
    mean_ci,
    paired_difference,
    proportion_ci,
    seed_ci,
)
from imsm.evaluation.statistics.validation import (
    NOISE,
    all_equal,
    as_binary_array,
    as_finite_array,
    check_level,
    paired_difference_array,
)

__all__ = [
    "Interval",
    "McNemar",
    "TTest",
    "bootstrap_statistic_ci",
    "holm",
    "mcnemar",
    "mean_ci",
    "minimum_detectable_difference",
    "paired_difference",
    "paired_t",
    "proportion_ci",
    "roc_auc",
    "seed_ci",
    "student_t",
]


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Items that one arm alone got right (``better``), that the other alone did, and p."""

    better: int
    worse: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class TTest:
    """A difference of means over seeds; ``t`` and ``p_value`` None where seeds do not vary."""

    difference: float
    t: float | None
    degrees: float
    p_value: float | None


def mcnemar(one: ArrayLike, other: ArrayLike) -> McNemar:
    """The exact test of McNemar on right (1) and wrong (0) answers to the same N items.

    Raises:
        ValueError: another value than 0 and 1, or not the same number of items.
    """
    difference = paired_difference_array(as_binary_array(one), as_binary_array(other))
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    apart = better + worse
    p_value = float(stats.binomtest(better, apart).pvalue) if apart else 1.0
    return McNemar(better=better, worse=worse, p_value=p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjustment over a declared family: p-values by name, (the same names) adjusted.

    Raises:
        ValueError: a value that is not between 0 and 1; leave a test that gave none out.
    """
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    wrong = {name: value for name, value in p_values.items() if not 0 <= value <= 1}
    if wrong:
        raise ValueError(f"{wrong}: a p-value is between 0 and 1")
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


def student_t(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Student's t-test of two arms' scores over seeds, the paper's; None below 2 seeds each."""
    first, second = as_finite_array(one), as_finite_array(other)
    if min(len(first), len(second)) < 2:
        return None
    difference = float(first.mean() - second.mean())
    degrees = len(first) + len(second) - 2
    scale = float(numpy.abs(numpy.concatenate([first, second])).max())
    if max(numpy.ptp(first), numpy.ptp(second)) <= NOISE * scale:
        return TTest(difference=difference, t=None, degrees=degrees, p_value=None)
    found = stats.ttest_ind_from_stats(
        *(each for arm in (first, second) for each in (arm.mean(), arm.std(ddof=1), len(arm)))
    )
    return TTest(difference=difference, t=float(found.statistic), degrees=degrees, p_value=float(found.pvalue))


def paired_t(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """The t-test of two arms' scores, paired by seed; None below 2 seeds."""
    difference = paired_difference_array(one, other)
    if len(difference) < 2:
        return None
    mean, degrees = float(difference.mean()), len(difference) - 1
    if all_equal(one, other):
        return TTest(difference=mean, t=None, degrees=degrees, p_value=None)
    found = stats.ttest_1samp(difference, 0.0)
    return TTest(difference=mean, t=float(found.statistic), degrees=degrees, p_value=float(found.pvalue))


def minimum_detectable_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    power: float = 0.8,
    level: float = 0.95,
) -> float | None:
    """The least mean difference that N pairs as varied as these show with this power.

    None where the pairs do not vary, or are in fewer than 3 groups.
    """
    from statsmodels.stats.power import TTestPower

    error, count = standard_error(paired_difference_array(one, other), groups)
    if count < 3 or all_equal(one, other) or not error:
        return None
    effect = TTestPower().solve_power(nobs=count, alpha=1 - check_level(level), power=power)
    return float(numpy.squeeze(effect)) * error * count**0.5


def roc_auc(values: ArrayLike, right: ArrayLike) -> float | None:
    """How well a value tells right answers from wrong ones: the area under the ROC curve.

    1/2: not at all; None where all are right or all wrong.

    Raises:
        ValueError: no values, one that is not finite, or not as many of both.
    """
    from sklearn.metrics import roc_auc_score

    found, labels = as_finite_array(values), as_binary_array(right) > 0
    if len(found) != len(labels):
        raise ValueError(f"{len(found)} values against {len(labels)} answers: needs one each")
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, found))
