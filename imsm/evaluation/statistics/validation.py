"""Input checks of the statistics: one finite value per example, and pairs of them."""

import numpy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[numpy.float64]
NOISE = 1e-12
"""Relative difference below which values count as equal (rounding)."""


def as_finite_array(values: ArrayLike) -> Array:
    """Return the values as an array (N,).

    Raises:
        ValueError: No values, another shape, or a value that is not finite.
    """
    array = numpy.asarray(values, dtype=numpy.float64)
    if array.ndim != 1:
        raise ValueError(f"values of shape {array.shape}: needs one per example, (N,)")
    if not array.size:
        raise ValueError("got no values")
    # NumPy would turn one NaN into an interval of NaN without an error.
    if not numpy.isfinite(array).all():
        raise ValueError("a value is not finite")
    return array


def as_binary_array(values: ArrayLike) -> Array:
    """Return the values as an array (N,) of 0 and 1.

    Raises:
        ValueError: As `as_finite_array`, or another value.
    """
    array = as_finite_array(values)
    if not numpy.isin(array, (0.0, 1.0)).all():
        raise ValueError("values must be right (1) or wrong (0)")
    return array


def paired_difference_array(one: ArrayLike, other: ArrayLike) -> Array:
    """Return one − other, by example (N,).

    Raises:
        ValueError: As `as_finite_array`, or unequal numbers of examples.
    """
    first, second = as_finite_array(one), as_finite_array(other)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} examples against {len(second)}: a pair needs both")
    return first - second


def all_equal(one: ArrayLike, other: ArrayLike) -> bool:
    """Return whether one − other is constant, up to rounding."""
    scale = max(float(numpy.abs(as_finite_array(values)).max()) for values in (one, other))
    return float(numpy.ptp(paired_difference_array(one, other))) <= NOISE * scale


def check_level(level: float) -> float:
    """Return the level.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1, such as 0.95")
    return level
