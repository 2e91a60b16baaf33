"""Items in groups that share a passage, and draws of whole groups with replacement.

Legend: N items, C groups, K columns (arms or seeds that answered the same items), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import pandas
from numpy.typing import NDArray

from imsm.evaluation.given import Array

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
