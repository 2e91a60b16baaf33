"""Resampled scores of several models on the same items, for statistics of tasks and stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import numpy as np
import pandas
from numpy.typing import NDArray

from imsm.evaluation.statistics.validation import Array

_FEW = 64
"""So many kinds of groups are drawn by their number; more are drawn one by one."""
_AT_ONCE = 200_000
"""So many draws are in memory at a time, and in the processor's cache."""


def cluster_ids(groups: Sequence[object] | None, count: int) -> NDArray[numpy.int64]:
    """Each item's group as a number from 0 on (N,); an item without a label is its own group.

    Args:
        groups: N labels, None or NaN where there is none; None: each item is its own.
        count: N.

    Raises:
        ValueError: not as many labels as items.
    """
    if groups is None:
        return numpy.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} values")
    found = pandas.factorize(pandas.Series(list(groups), dtype=object))[0].astype(numpy.int64)
    alone = found < 0
    found[alone] = found.max(initial=-1) + 1 + numpy.arange(alone.sum())
    return found


def cluster_sums(values: Array, groups: Sequence[object] | None) -> tuple[Array, Array]:
    """Sums (C, K) and sizes (C,) of the groups of values (N, K).

    Raises:
        ValueError: not as many labels as items.
    """
    labels = cluster_ids(groups, len(values))
    sizes = numpy.bincount(labels).astype(numpy.float64)
    sums = [numpy.bincount(labels, column) for column in values.T]
    return numpy.stack(sums, axis=1, dtype=numpy.float64), sizes


def bootstrap_means(sums: Array, sizes: Array, *, resamples: int, seed: int) -> Array:
    """Means over all items of C groups drawn with replacement (R, K): the same for all columns.

    Args:
        sums: of each group (C, K).
        sizes: of each group (C,).
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: R is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least 1 is needed")
    rng = numpy.random.default_rng(seed)
    count, columns = len(sizes), numpy.column_stack([sums, sizes])
    kinds, counts = numpy.unique(columns, axis=0, return_counts=True)
    if len(kinds) <= _FEW:  # drawing groups is drawing how many of each kind
        totals = rng.multinomial(count, counts / count, size=resamples) @ kinds
        return numpy.asarray(totals[:, :-1] / totals[:, -1:])
    parts = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // count)):
        rows = min(step, resamples - start)
        draw = rng.integers(count, size=(rows, count)) + count * numpy.arange(rows)[:, None]
        often = numpy.bincount(draw.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(often.astype(numpy.float64) @ columns)
    totals = numpy.concatenate(parts)
    return numpy.asarray(totals[:, :-1] / totals[:, -1:])


def standard_error(values: Array, groups: Sequence[object] | None) -> tuple[float, int]:
    """The mean's standard error from the variation of the groups' totals, and C.

        sqrt(C / (C - 1) sum_c (sum_c - mean size_c)^2) / N      (linearised ratio; 0 for C = 1)

    Args:
        values: (N,).
        groups: N labels, or None.
    """
    sums, sizes = cluster_sums(values[:, None], groups)
    count = len(sizes)
    if count < 2 or not numpy.ptp(values):
        return 0.0, count
    rest = sums[:, 0] - values.mean() * sizes
    return float((count / (count - 1) * (rest @ rest)) ** 0.5 / len(values)), count


Statistic = Callable[[pandas.DataFrame], float]
"""A metric's value in points of some rows of items."""


def resample_scores(
    frames: Sequence[pandas.DataFrame], statistic: Statistic | str, *, resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw whole groups of items with replacement, the same ones for every model.

    Args:
        frames: the items of each of M models, as `imsm.evaluation.predictions.read_items` gives them.
        statistic: of a model's drawn rows; or a column, whose mean times 100 it is.
        resamples: how often, N.
        generator: of the draws.

    Returns:
        The statistic of every draw and model (N, M).

    Raises:
        ValueError: the models answered different items.
    """
    first = frames[0]
    if any(not frame.index.equals(first.index) for frame in frames[1:]):
        raise ValueError("the models answered different items")
    owner = pandas.Series(first.index, index=first.index)
    codes, _ = pandas.factorize(first["group"].fillna(owner) if "group" in first else owner)
    count = int(codes.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = drawn[:, codes]  # how often each item was drawn
    if isinstance(statistic, str):
        values = np.stack([frame[statistic].to_numpy(float) for frame in frames], axis=1)
        means: NDArray[np.float64] = 100 * (weights @ values) / weights.sum(axis=1, keepdims=True)
        return means
    places = [np.repeat(np.arange(len(first)), weight) for weight in weights]
    return np.array([[statistic(frame.iloc[rows]) for frame in frames] for rows in places])
