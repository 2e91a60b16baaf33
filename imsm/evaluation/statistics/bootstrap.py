"""Cluster bootstrap: draw groups of examples with replacement.

Examples that share a passage form a group and are drawn together; an example without a group label is
its own group. Symbols: N examples, C groups, K columns, M models, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy
import pandas
from numpy.typing import NDArray

from imsm.evaluation.statistics.validation import Array

_MAX_DISTINCT = 64
"""Up to this many distinct groups are drawn by their counts; more are drawn one by one."""
_DRAWS_AT_ONCE = 200_000
"""Number of draws held in memory (and in the processor's cache) at once."""

Statistic = Callable[[pandas.DataFrame], float]
"""A metric's value, in points, of some rows of predictions."""


def cluster_ids(groups: Sequence[object] | None, count: int) -> NDArray[numpy.int64]:
    """Number the groups of N examples from 0 (N,); ``count`` is N.

    A label of None or NaN marks an example that is its own group; without labels each is.

    Raises:
        ValueError: Unequal numbers of labels and examples.
    """
    if groups is None:
        return numpy.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} values")
    codes, _ = pandas.factorize(pandas.Series(list(groups), dtype=object))
    ids: NDArray[numpy.int64] = codes.astype(numpy.int64)
    # pandas gives None and NaN the code -1.
    unlabelled = ids < 0
    ids[unlabelled] = ids.max(initial=-1) + 1 + numpy.arange(unlabelled.sum())
    return ids


def cluster_sums(values: Array, groups: Sequence[object] | None) -> tuple[Array, Array]:
    """Return sums (C, K) and sizes (C,) of the groups of values (N, K).

    Raises:
        ValueError: Unequal numbers of labels and examples.
    """
    ids = cluster_ids(groups, len(values))
    sizes = numpy.bincount(ids).astype(numpy.float64)
    sums = [numpy.bincount(ids, column) for column in values.T]
    return numpy.stack(sums, axis=1, dtype=numpy.float64), sizes


def bootstrap_means(sums: Array, sizes: Array, *, resamples: int, seed: int) -> Array:
    """Return means over the examples of C drawn groups (R, K); all columns share the draws.

    ``sums`` (C, K) and ``sizes`` (C,) are those of `cluster_sums`.

    Raises:
        ValueError: R is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    rng = numpy.random.default_rng(seed)
    # The sizes are one more column: a product gives numerators and denominators of the same draw.
    count, columns = len(sizes), numpy.column_stack([sums, sizes])
    distinct, counts = numpy.unique(columns, axis=0, return_counts=True)
    if len(distinct) <= _MAX_DISTINCT:
        # Drawing groups is drawing how often each distinct one occurs.
        totals = rng.multinomial(count, counts / count, size=resamples) @ distinct
    else:
        parts = []
        for start in range(0, resamples, step := max(1, _DRAWS_AT_ONCE // count)):
            rows = min(step, resamples - start)
            # Each resample counts in its own range of numbers, so that one bincount does for all.
            draw = rng.integers(count, size=(rows, count)) + count * numpy.arange(rows)[:, None]
            times = numpy.bincount(draw.ravel(), minlength=rows * count).reshape(rows, count)
            parts.append(times.astype(numpy.float64) @ columns)
        totals = numpy.concatenate(parts)
    return numpy.asarray(totals[:, :-1] / totals[:, -1:])


def standard_error(values: Array, groups: Sequence[object] | None) -> tuple[float, int]:
    """Return the cluster-robust standard error of the mean of values (N,), and C.

    sqrt(C / (C - 1) sum_c (sum_c - mean size_c)^2) / N      (linearized ratio; 0 for C = 1)
    """
    sums, sizes = cluster_sums(values[:, None], groups)
    count = len(sizes)
    # Equal values: the rounding error of their mean must not count as variation.
    if count < 2 or not numpy.ptp(values):
        return 0.0, count
    residuals = sums[:, 0] - values.mean() * sizes
    return float((count / (count - 1) * (residuals @ residuals)) ** 0.5 / len(values)), count


def resample_scores(
    frames: Sequence[pandas.DataFrame],
    statistic: Statistic | str,
    *,
    resamples: int,
    generator: numpy.random.Generator,
) -> Array:
    """Return the statistic of R resamples for M models on the same examples (R, M).

    ``frames`` are as returned by `read_predictions`; all share the draws. ``statistic`` is a function of
    the drawn rows, or a column whose mean times 100 is the statistic.

    Raises:
        ValueError: The models answered different examples.
    """
    first = frames[0]
    if any(not frame.index.equals(first.index) for frame in frames[1:]):
        raise ValueError("the models answered different examples")
    own_group = pandas.Series(first.index, index=first.index)
    groups = first["group"].fillna(own_group) if "group" in first else own_group
    ids = cluster_ids(groups.tolist(), len(first))
    count = int(ids.max()) + 1
    drawn = generator.multinomial(count, numpy.full(count, 1 / count), size=resamples)
    # How often each example was drawn; a mean then needs no copy of the rows.
    weights = drawn[:, ids]
    if isinstance(statistic, str):
        values = numpy.stack([frame[statistic].to_numpy(float) for frame in frames], axis=1)
        return numpy.asarray(100 * (weights @ values) / weights.sum(axis=1, keepdims=True))
    indices = [numpy.repeat(numpy.arange(len(first)), weight) for weight in weights]
    return numpy.array([[statistic(frame.iloc[rows]) for frame in frames] for rows in indices])
