"""Resampled scores of several models on the same items, for statistics of tasks and stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas
from numpy.typing import NDArray

Statistic = Callable[[pandas.DataFrame], float]
"""A metric's value in points of some rows of items."""


def resample(
    frames: Sequence[pandas.DataFrame],
    statistic: Statistic | str,
    *,
    resamples: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw whole groups of items with replacement, the same ones for every model.

    Args:
        frames: the items of each of M models, as `imsm.evaluation.items.read_items` gives them.
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
