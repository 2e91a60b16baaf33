"""Measures of a task sequence against matrices worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from imsm.evaluation.statistics.continual import (
    all_measures,
    backward_transfer,
    forgetting,
    forward_transfer,
    general_change,
    overall_performance,
)

THREE = np.array(
    [
        [10.0, 20.0, 30.0],  # the original
        [80.0, 25.0, 10.0],  # after the first task
        [90.0, 70.0, 45.0],  # after the second
        [60.0, 40.0, 75.0],  # after the third
    ]
)


def test_three_tasks_by_hand() -> None:
    assert backward_transfer(THREE) == pytest.approx(((60 - 80) + (40 - 70)) / 2)
    # the first task was best after the second stage, which backward transfer does not see
    assert forgetting(THREE) == pytest.approx([90 - 60, 70 - 40])
    assert overall_performance(THREE) == pytest.approx((60 + 40 + 75) / 3)
    assert forward_transfer(THREE) == pytest.approx(((25 - 20) + (45 - 30)) / 2)


def test_two_tasks_by_hand() -> None:
    scores = np.array([[0.0, 50.0], [40.0, 30.0], [44.0, 70.0]])
    by_hand = {"BWT": 4.0, "FM": -4.0, "OP": 57.0, "FWT": -20.0}
    assert all_measures(scores, learned=2) == pytest.approx(by_hand)
    others = np.array([[90.0, 60.0], [80.0, 10.0], [70.0, 50.0]])
    assert general_change(others) == pytest.approx(((70 - 90) + (50 - 60)) / 2)
    found = all_measures(np.hstack([scores, others]), learned=2)
    assert found == pytest.approx(by_hand | {"DG": -15.0})


def test_a_stack_equals_its_matrices_one_by_one() -> None:
    stack = np.random.default_rng(0).uniform(0, 100, (7, 5, 4))
    together = all_measures(stack, learned=4)
    alone = [all_measures(one, learned=4) for one in stack]
    for name, values in together.items():
        assert values == pytest.approx([float(one[name]) for one in alone])
    assert forgetting(stack).shape == (7, 3)


@pytest.mark.parametrize("shape", [(2, 1), (3, 3), (2, 3)])
def test_other_shapes_are_rejected(shape: tuple[int, int]) -> None:
    measures = (backward_transfer, forgetting, overall_performance, forward_transfer)
    for measure in measures:
        with pytest.raises(ValueError, match="a row for the original"):
            measure(np.zeros(shape))
