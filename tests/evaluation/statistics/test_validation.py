"""Input checks of the statistics."""

from __future__ import annotations

import pytest

from imsm.evaluation.statistics.validation import (
    all_equal,
    as_binary_array,
    as_finite_array,
    check_level,
    paired_difference_array,
)


@pytest.mark.parametrize(
    ("values", "message"), [([], "no values"), ([1.0, float("nan")], "not finite"), ([[1.0]], "needs one per example")]
)
def test_values_must_be_finite_and_one_per_example(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_finite_array(values)


def test_binary_values_pairs_and_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="right \\(1\\) or wrong"):
        as_binary_array([0.5, 1])
    with pytest.raises(ValueError, match="a pair needs both"):
        paired_difference_array([1, 0], [1])
    with pytest.raises(ValueError, match="level=95"):
        check_level(95)


def test_differences_are_equal_up_to_rounding() -> None:
    assert all_equal([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])
    assert not all_equal([0.3, 0.4], [0.1, 0.3])
