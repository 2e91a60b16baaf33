"""Intervals and tests for two arms that answered the same items.

Legend: N items, C groups of items that share a passage (an item without one is its own group),
S seeds. Values keep the unit that they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[numpy.float64]
RESAMPLES = 10_000
_FEW = 64
"""So many kinds of groups are drawn by their number; more are drawn one by one."""
_AT_ONCE = 2_000_000
"""So many draws are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate between two bounds that hold the truth in ``level`` of all samples."""

    estimate: float
    low: float
    high: float
    level: float


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


def mean_interval(
    values: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of N values, with a percentile bootstrap over groups.

    Whole groups are drawn, since items of one passage are right or wrong together; the mean is
    that over all items drawn. Where all values are equal the interval is a point: then it says
    that nothing varied, not that nothing could.

    Args:
        values: (N,).
        groups: N labels; None: each item is its own.
        level: of the interval.
        resamples: how often the groups are drawn.
        seed: of the draws.

    Raises:
        ValueError: no values, a value that is not finite, or not as many labels as values.
    """
    found = _values(values)
    sums, sizes = _by_group(found, groups)
    means = _resampled(sums, sizes, resamples=resamples, seed=seed)
    return _interval(float(found.mean()), means, level=level)


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
    difference = _difference(one, other)
    return mean_interval(difference, groups=groups, level=level, resamples=resamples, seed=seed)


def statistic_difference(
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
        ValueError: no items.
    """
    if items < 1:
        raise ValueError("there are no items")
    places = numpy.arange(items)
    labels = _labels(groups, items)
    ends = numpy.cumsum(numpy.bincount(labels))[:-1]
    members = numpy.split(places[numpy.argsort(labels, kind="stable")], ends)

    def total(chosen: NDArray[numpy.int64]) -> float:
        return statistic(chosen) - (other(chosen) if other is not None else 0.0)

    draws = numpy.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    found = numpy.array([total(numpy.concatenate([members[i] for i in draw])) for draw in draws])
    return _interval(total(places), found, level=level)


def over_seeds(
    differences: Sequence[ArrayLike],
    *,
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of S seeds' values on the same N items: seeds are drawn, then groups of items.

    So the interval speaks of training again and of other items at once (a random effect of the
    seed). With one seed it is `mean_interval`, which speaks of this one model.

    Args:
        differences: S arrays (N,), e.g. one − other of each seed.
        groups: N labels, the same for all seeds.
        level: of the interval.
        resamples: how often it is drawn.
        seed: of the draws.
    """
    table = numpy.stack([_values(each) for each in differences])
    sums, sizes = _by_group(table, groups)  # (S, C), (C,)
    rng = numpy.random.default_rng(seed)
    count = len(table)
    means = numpy.empty(resamples)
    for number, draw in enumerate(rng.integers(count, size=(resamples, count))):
        weights = numpy.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        means[number] = (sums[draw].mean(axis=0) @ weights) / (sizes @ weights)
    return _interval(float(table.mean()), means, level=level)


def mcnemar(one: ArrayLike, other: ArrayLike) -> McNemar:
    """The exact test of McNemar on right (1) and wrong (0) answers to the same N items.

    Raises:
        ValueError: another value than 0 and 1, or not the same number of items.
    """
    first, second = _values(one), _values(other)
    if not set(numpy.unique(numpy.concatenate([first, second]))) <= {0.0, 1.0}:
        raise ValueError("McNemar's test is for answers that are right (1) or wrong (0)")
    difference = _difference(first, second)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    apart = better + worse
    p_value = float(stats.binomtest(better, apart).pvalue) if apart else 1.0
    return McNemar(better=better, worse=worse, p_value=p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjustment over a declared family: p-values by name, (the same names) adjusted."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


def student_t(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Student's t-test of two arms' scores over seeds, the paper's; None below 2 seeds each."""
    first, second = _values(one), _values(other)
    if min(len(first), len(second)) < 2:
        return None
    difference = float(first.mean() - second.mean())
    degrees = len(first) + len(second) - 2
    if not (numpy.ptp(first) or numpy.ptp(second)):
        return TTest(difference=difference, t=None, degrees=degrees, p_value=None)
    found = stats.ttest_ind(first, second)
    return TTest(
        difference=difference,
        t=float(found.statistic),
        degrees=degrees,
        p_value=float(found.pvalue),
    )


def paired_t(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """The t-test of two arms' scores, paired by seed; None below 2 seeds."""
    difference = _difference(one, other)
    if len(difference) < 2:
        return None
    mean, degrees = float(difference.mean()), len(difference) - 1
    if not numpy.ptp(difference):
        return TTest(difference=mean, t=None, degrees=degrees, p_value=None)
    found = stats.ttest_1samp(difference, 0.0)
    return TTest(
        difference=mean, t=float(found.statistic), degrees=degrees, p_value=float(found.pvalue)
    )


def detectable(
    one: ArrayLike, other: ArrayLike, *, power: float = 0.8, level: float = 0.95
) -> float | None:
    """The least mean difference that N pairs as varied as these show with this power.

    None where the pairs do not vary, or are fewer than 3.
    """
    from statsmodels.stats.power import TTestPower

    difference = _difference(one, other)
    spread = float(difference.std(ddof=1)) if len(difference) > 2 else 0.0
    if not spread:
        return None
    effect = TTestPower().solve_power(nobs=len(difference), alpha=1 - level, power=power)
    return float(effect) * spread


def separation(values: ArrayLike, right: ArrayLike) -> float | None:
    """How well a value tells right answers from wrong ones: the area under the ROC curve.

    1/2: not at all; None where all are right or all wrong.
    """
    from sklearn.metrics import roc_auc_score

    labels = _values(right) > 0
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, _values(values)))


def _values(values: ArrayLike) -> Array:
    found = numpy.asarray(values, dtype=numpy.float64)
    if not found.size:
        raise ValueError("there are no values")
    if not numpy.isfinite(found).all():
        raise ValueError("a value is not finite")
    return found


def _difference(one: ArrayLike, other: ArrayLike) -> Array:
    first, second = _values(one), _values(other)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} items against {len(second)}: a pair needs both")
    return first - second


def _labels(groups: Sequence[object] | None, count: int) -> NDArray[numpy.int64]:
    """Each item's group as a number."""
    if groups is None:
        return numpy.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} values")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
    return numpy.array([numbers[label] for label in groups])


def _by_group(values: Array, groups: Sequence[object] | None) -> tuple[Array, Array]:
    """Sums (..., C) and sizes (C,) of the groups of values (..., N)."""
    labels = _labels(groups, values.shape[-1])
    count = int(labels.max()) + 1
    sizes = numpy.bincount(labels, minlength=count).astype(numpy.float64)
    rows = [numpy.bincount(labels, row, minlength=count) for row in numpy.atleast_2d(values)]
    sums = numpy.array(rows, dtype=numpy.float64).reshape(*values.shape[:-1], count)
    return sums, sizes


def _resampled(sums: Array, sizes: Array, *, resamples: int, seed: int) -> Array:
    """Means over all items of C groups drawn with replacement, ``resamples`` times."""
    rng = numpy.random.default_rng(seed)
    kinds, counts = numpy.unique(numpy.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    if len(kinds) <= _FEW:  # drawing groups is drawing how many of each kind
        drawn = rng.multinomial(len(sums), counts / len(sums), size=resamples)
        totals = drawn @ kinds
        return numpy.asarray(totals[:, 0] / totals[:, 1])
    means = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // len(sums))):
        size = (min(step, resamples - start), len(sums))
        draw = rng.integers(len(sums), size=size)
        means.append(sums[draw].sum(axis=1) / sizes[draw].sum(axis=1))
    return numpy.concatenate(means)


def _interval(estimate: float, resampled: Array, *, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = numpy.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level)
