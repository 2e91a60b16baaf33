"""Confidence intervals of means and other statistics, over examples and over seeds.

Symbols: N examples, C groups of examples that share a passage, S seeds, R resamples. Values keep their
unit. Common arguments: ``groups`` are N labels, None for an example that is its own group (without
labels each is); ``level`` is the confidence level; ``resamples`` is R; ``seed`` is that of the draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from imsm.evaluation.statistics.bootstrap import bootstrap_means, cluster_ids, cluster_sums, standard_error
from imsm.evaluation.statistics.validation import (
    NOISE,
    Array,
    as_binary_array,
    as_finite_array,
    check_level,
    paired_difference_array,
)

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a confidence interval of the given level."""

    estimate: float
    low: float
    high: float
    level: float


def mean_ci(
    values: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean of N values over groups.

    Groups are drawn as a unit, since examples of one passage are correlated; the mean is over all drawn
    examples. The percentiles are those of Hesterberg (2015), section 5.3: slightly wider, as Student's t
    for C groups; without it the interval of 25 groups covers 92 % instead of 95 %. If all values are
    equal, or there is one group, the interval is a point (for a proportion of 0 or 1 use
    `proportion_ci`). If fewer than about ten values differ from the rest, no bootstrap covers well; use
    McNemar's test.

    Raises:
        ValueError: No values, a value that is not finite, unequal numbers of labels and values, or a
            level that is not between 0 and 1.
    """
    array = as_finite_array(values)
    sums, sizes = cluster_sums(array[:, None], groups)
    means = bootstrap_means(sums, sizes, resamples=resamples, seed=seed)[:, 0]
    return _percentile_interval(float(array.mean()), means, groups=len(sizes), level=level)


def proportion_ci(right: ArrayLike, *, groups: Sequence[object] | None = None, level: float = 0.95) -> Interval:
    """Compute Wilson's interval of the proportion of ones; not a point at 0 and 1.

    N is replaced by the effective number of independent examples (Korn and Graubard, 1998), or by C if
    all values are equal.

    Raises:
        ValueError: As `mean_ci`, or another value than 0 and 1.
    """
    array = as_binary_array(right)
    share = float(array.mean())
    error, count = standard_error(array, groups)
    effective = min(share * (1 - share) / error**2, float(len(array))) if error else float(count)
    # statsmodels accepts the fractional counts of an effective sample size.
    low, high = proportion_confint(share * effective, effective, alpha=1 - check_level(level), method="wilson")
    # Rounding may leave 1e-17 where the bound is the share itself.
    return Interval(estimate=share, low=min(float(low), share), high=max(float(high), share), level=level)


def paired_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean of one − other over the same N examples, over groups.

    Raises:
        ValueError: As `mean_ci`, or unequal numbers of examples.
    """
    difference = paired_difference_array(one, other)
    return mean_ci(difference, groups=groups, level=level, resamples=resamples, seed=seed)


def bootstrap_statistic_ci(
    statistic: Callable[[NDArray[numpy.int64]], float],
    other: Callable[[NDArray[numpy.int64]], float] | None,
    *,
    items: int,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = 1_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap the difference of two statistics that are not means (Matthews correlation, F1).

    ``statistic`` and ``other`` compute the runs' statistics of the examples at the given indices, for
    each resample; without ``other`` the interval is that of the first alone. ``items`` is N.

    Raises:
        ValueError: No examples, or a statistic that is not finite.
    """
    if items < 1:
        raise ValueError(f"items={items}: must be at least 1")
    indices = numpy.arange(items)
    ids = cluster_ids(groups, items)
    ends = numpy.cumsum(numpy.bincount(ids))[:-1]
    members = numpy.split(indices[numpy.argsort(ids, kind="stable")], ends)

    def difference(chosen: NDArray[numpy.int64]) -> float:
        return statistic(chosen) - (other(chosen) if other is not None else 0.0)

    draws = numpy.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    values = as_finite_array([difference(numpy.concatenate([members[i] for i in draw])) for draw in draws])
    return _percentile_interval(difference(indices), values, groups=len(members), level=level)


def seed_ci(
    differences: Sequence[ArrayLike],
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Compute the interval of the mean of S seeds' values on the same N examples.

    Seeds and groups of examples are both drawn (a random effect of the seed), so the interval covers
    another training and other examples. Draws of S seeds vary too little by (S - 1) / S, which is
    corrected; the interval is Student's t times the draws' standard deviation, with Satterthwaite's
    degrees of freedom: near S - 1 if the seeds dominate, near C - 1 if the examples do. With one seed
    it is `mean_ci`, which covers this one model only. ``differences`` are S arrays (N,).

    Raises:
        ValueError: No seed, unequal numbers of examples, or as `mean_ci`.
    """
    columns = [as_finite_array(values) for values in differences]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            f"seeds of {[len(column) for column in columns]} examples: needs at least one seed, and "
            "the same examples for each"
        )
    seeds = len(columns)
    if seeds == 1:
        return mean_ci(columns[0], groups=groups, level=level, resamples=resamples, seed=seed)
    table = numpy.stack(columns, axis=1)  # (N, S)
    sums, sizes = cluster_sums(table, groups)
    means = bootstrap_means(sums, sizes, resamples=resamples, seed=seed)  # (R, S)
    # Each column's mean over the same drawn examples; then seeds are drawn for each resample.
    # With `seed` alone, the generator would repeat the draws of the examples.
    drawn = numpy.random.default_rng([seed, seeds]).integers(seeds, size=means.shape)
    example_effect = means.mean(axis=1)
    seed_effect = numpy.take_along_axis(means, drawn, axis=1).mean(axis=1) - example_effect
    example_degrees, seed_degrees = len(sizes) - 1, seeds - 1
    example_variance = float(example_effect.var()) * (len(sizes) / example_degrees if example_degrees else 1.0)
    seed_variance = float(seed_effect.var()) * seeds / seed_degrees
    estimate, variance = float(table.mean()), example_variance + seed_variance
    half_width = 0.0
    # Without variation the share below would be the ratio of two rounding errors.
    if variance**0.5 > NOISE * float(numpy.abs(table).max()):
        share = example_variance / variance
        degrees = 1 / (share**2 / max(example_degrees, 1) + (1 - share) ** 2 / seed_degrees)
        half_width = float(stats.t.ppf((1 + check_level(level)) / 2, degrees)) * variance**0.5
    return Interval(estimate=estimate, low=estimate - half_width, high=estimate + half_width, level=level)


def student_ci(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Compute Student's interval of the mean of S seeds' scores; a point for one seed.

    It covers another training on the same examples, not other examples.

    Raises:
        ValueError: No values, a value that is not finite, or a level that is not between 0 and 1.
    """
    array = as_finite_array(values)
    mean, half_width = float(array.mean()), 0.0
    if len(array) > 1:
        error = float(array.std(ddof=1)) / len(array) ** 0.5
        half_width = float(stats.t.ppf((1 + check_level(level)) / 2, len(array) - 1)) * error
    return Interval(estimate=mean, low=mean - half_width, high=mean + half_width, level=level)


def macro_average_ci(parts: Sequence[Interval], *, tests: Sequence[str]) -> Interval:
    """Compute the interval of the mean of K scores on several evaluation sets.

        low = mean - sqrt(sum_t (sum_{k of t} (estimate_k - low_k))^2) / K        (upper bound likewise)

    The method of variance estimates recovery (Zou and Donner 2008): each bound keeps the skewness of
    its parts. Scores on one evaluation set (accuracy and F1), named by ``tests``, are treated as fully
    correlated.

    Raises:
        ValueError: No intervals, or several levels.
    """
    levels = {part.level for part in parts}
    if len(levels) != 1:
        raise ValueError(f"intervals of the levels {sorted(levels)}: needs at least one, all of one level")
    down, up = dict.fromkeys(tests, 0.0), dict.fromkeys(tests, 0.0)
    for part, test in zip(parts, tests, strict=True):
        down[test] += part.estimate - part.low
        up[test] += part.high - part.estimate
    mean = sum(part.estimate for part in parts) / len(parts)
    low, high = (float(numpy.linalg.norm(list(each.values()))) / len(parts) for each in (down, up))
    return Interval(estimate=mean, low=mean - low, high=mean + high, level=levels.pop())


def _percentile_interval(estimate: float, resampled: Array, *, groups: int, level: float) -> Interval:
    """Hesterberg's expanded percentiles (2015): Phi(sqrt(C / (C - 1)) t(alpha / 2, C - 1))."""
    tail = (1 - check_level(level)) / 2
    # Plain percentiles have normal tails and divide by C, not C - 1: too narrow for few groups.
    if groups > 1:
        student = float(stats.t.ppf(tail, groups - 1))
        tail = float(stats.norm.cdf((groups / (groups - 1)) ** 0.5 * student))
    low, high = numpy.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level)
