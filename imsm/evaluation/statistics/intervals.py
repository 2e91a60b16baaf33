"""Intervals of means and totals over items, and over seeds, by drawing groups of items.

Legend: N items, C groups of items that share a passage (an item without one is its own group),
S seeds, R resamples. Values keep the unit that they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import stats

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
    """An estimate between two bounds that hold the truth in ``level`` of all samples."""

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
    """The mean of N values, with a percentile bootstrap over groups.

    Whole groups are drawn, since items of one passage are right or wrong together; the mean is
    that over all items drawn. The percentiles are those of Hesterberg (2015), section 5.3: a little
    further out, as Student's t is for C groups, without which 25 groups cover 92 instead of 95 %.
    Where all values are equal, or all of one group, the interval is a point: then it says that
    nothing varied, not that nothing could (of a share of 0 or 1 see `share_interval`). Where fewer
    than some ten values differ from the rest no bootstrap covers well: read McNemar's p there.

    Args:
        values: (N,).
        groups: N labels, None where an item is its own group; None: each is.
        level: of the interval.
        resamples: how often the groups are drawn.
        seed: of the draws.

    Raises:
        ValueError: no values, a value that is not finite, not as many labels as values, or a level
            that is not between 0 and 1.
    """
    found = as_finite_array(values)
    sums, sizes = cluster_sums(found[:, None], groups)
    means = bootstrap_means(sums, sizes, resamples=resamples, seed=seed)[:, 0]
    return _interval(float(found.mean()), means, groups=len(sizes), level=level)


def proportion_ci(right: ArrayLike, *, groups: Sequence[object] | None = None, level: float = 0.95) -> Interval:
    """The share of ones among N values of 0 and 1, with Wilson's interval: no point at 0 and 1.

    N is replaced by the number of independent items that vary as much as the groups do (Korn and
    Graubard, 1998); C where nothing varies.

    Raises:
        ValueError: as `mean_interval`, or another value than 0 and 1.
    """
    from statsmodels.stats.proportion import proportion_confint

    found = as_binary_array(right)
    share = float(found.mean())
    error, count = standard_error(found, groups)
    effective = min(share * (1 - share) / error**2, float(len(found))) if error else float(count)
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
    """The mean of one − other over the same N items, with a bootstrap over groups.

    Raises:
        ValueError: as `mean_interval`, or not the same number of items.
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
    """The difference of two totals that are no means (Matthews' correlation, F1), bootstrapped.

    Args:
        statistic: one arm's total over the items at the given places.
        other: the other arm's; None: the interval of the one total.
        items: N.
        groups: N labels; None: each item is its own.
        level: of the interval.
        resamples: how often the groups are drawn; each draw computes both totals.
        seed: of the draws.

    Raises:
        ValueError: no items, or a total that is not finite, of all items or of a draw.
    """
    if items < 1:
        raise ValueError("there are no items")
    places = numpy.arange(items)
    labels = cluster_ids(groups, items)
    ends = numpy.cumsum(numpy.bincount(labels))[:-1]
    members = numpy.split(places[numpy.argsort(labels, kind="stable")], ends)

    def total(chosen: NDArray[numpy.int64]) -> float:
        return statistic(chosen) - (other(chosen) if other is not None else 0.0)

    draws = numpy.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    found = as_finite_array([total(numpy.concatenate([members[i] for i in draw])) for draw in draws])
    return _interval(total(places), found, groups=len(members), level=level)


def seed_ci(
    differences: Sequence[ArrayLike],
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of S seeds' values on the same N items: seeds are drawn, and groups of items.

    So the interval speaks of training again and of other items at once (a random effect of the
    seed). S seeds have few kinds of draws, and vary too little by (S - 1) / S: that part is
    stretched, and the interval is Student's t times the draws' standard deviation, with degrees of
    freedom by Satterthwaite: near S - 1 where the seeds make the difference, near C - 1 where the
    items do. With one seed it is `mean_interval`, which speaks of this one model.

    Args:
        differences: S arrays (N,), e.g. one − other of each seed.
        groups: N labels, the same for all seeds.
        level: of the interval.
        resamples: how often it is drawn.
        seed: of the draws.

    Raises:
        ValueError: no seed, seeds of unequally many items, or as `mean_interval`.
    """
    columns = [as_finite_array(each) for each in differences]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            f"seeds of {[len(column) for column in columns]} items: needs at least one seed, and "
            "the same items of each"
        )
    seeds = len(columns)
    if seeds == 1:
        return mean_ci(columns[0], groups=groups, level=level, resamples=resamples, seed=seed)
    table = numpy.stack(columns, axis=1)  # (N, S)
    sums, sizes = cluster_sums(table, groups)
    means = bootstrap_means(sums, sizes, resamples=resamples, seed=seed)  # (R, S)
    drawn = numpy.random.default_rng([seed, seeds]).integers(seeds, size=means.shape)
    of_items = means.mean(axis=1)
    of_seeds = numpy.take_along_axis(means, drawn, axis=1).mean(axis=1) - of_items
    groups_left, seeds_left = len(sizes) - 1, seeds - 1
    by_items = float(of_items.var()) * (len(sizes) / groups_left if groups_left else 1.0)
    by_seeds = float(of_seeds.var()) * seeds / seeds_left
    estimate, variance = float(table.mean()), by_items + by_seeds
    reach = 0.0
    if variance**0.5 > NOISE * float(numpy.abs(table).max()):
        share = by_items / variance
        degrees = 1 / (share**2 / max(groups_left, 1) + (1 - share) ** 2 / seeds_left)
        reach = float(stats.t.ppf((1 + check_level(level)) / 2, degrees)) * variance**0.5
    return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach, level=level)


def macro_average_ci(parts: Sequence[Interval], *, tests: Sequence[str]) -> Interval:
    """The mean of scores on several tests, each with items of its own.

        low = mean - sqrt(sum_t (sum_{k of t} (estimate_k - low_k))^2) / K        (and so upwards)

    The method of variance estimates recovery (Zou and Donner 2008): each bound keeps the skewness
    of its parts. Scores of one test rest on the same items (accuracy and F1): they are taken to err
    together, which is the most that they can.

    Args:
        parts: K intervals of one level.
        tests: the test of each.

    Raises:
        ValueError: none, or of several levels.
    """
    levels = {part.level for part in parts}
    if len(levels) != 1:
        raise ValueError(f"intervals of the levels {sorted(levels)}: needs some, of one level")
    down, up = dict.fromkeys(tests, 0.0), dict.fromkeys(tests, 0.0)
    for part, test in zip(parts, tests, strict=True):
        down[test] += part.estimate - part.low
        up[test] += part.high - part.estimate
    mean = sum(part.estimate for part in parts) / len(parts)
    low, high = (float(numpy.linalg.norm(list(each.values()))) / len(parts) for each in (down, up))
    return Interval(estimate=mean, low=mean - low, high=mean + high, level=levels.pop())


def _interval(estimate: float, resampled: Array, *, groups: int, level: float) -> Interval:
    """Hesterberg's expanded percentiles (2015): Phi(sqrt(C / (C - 1)) t(alpha / 2, C - 1))."""
    tail = (1 - check_level(level)) / 2
    if groups > 1:
        student = float(stats.t.ppf(tail, groups - 1))
        tail = float(stats.norm.cdf((groups / (groups - 1)) ** 0.5 * student))
    low, high = numpy.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level)
