"""What statistics are given, checked: one finite value for each item, and pairs of them."""

from __future__ import annotations

import numpy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[numpy.float64]
NOISE = 1e-12
"""Values that differ by less than this share of their size are equal but for rounding."""


def as_finite_array(values: ArrayLike) -> Array:
    """The values (N,) as an array.

    Raises:
        ValueError: none, another shape, or one that is not finite.
    """
    found = numpy.asarray(values, dtype=numpy.float64)
    if found.ndim != 1:
        raise ValueError(f"values of shape {found.shape}: needs one for each item, (N,)")
    if not found.size:
        raise ValueError("there are no values")
    if not numpy.isfinite(found).all():
        raise ValueError("a value is not finite")
    return found


def as_binary_array(values: ArrayLike) -> Array:
    """The values (N,) as an array of 0 and 1.

    Raises:
        ValueError: as `values_of`, or another value.
    """
    found = as_finite_array(values)
    if not numpy.isin(found, (0.0, 1.0)).all():
        raise ValueError("this is for answers that are right (1) or wrong (0)")
    return found


def paired_difference_array(one: ArrayLike, other: ArrayLike) -> Array:
    """One − other, by item (N,).

    Raises:
        ValueError: as `values_of`, or not the same number of items.
    """
    first, second = as_finite_array(one), as_finite_array(other)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} items against {len(second)}: a pair needs both")
    return first - second


def all_equal(one: ArrayLike, other: ArrayLike) -> bool:
    """Whether one − other is the same everywhere, but for rounding."""
    scale = max(float(numpy.abs(as_finite_array(each)).max()) for each in (one, other))
    return float(numpy.ptp(paired_difference_array(one, other))) <= NOISE * scale


def check_level(level: float) -> float:
    """The level itself.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: is between 0 and 1, such as 0.95")
    return level
