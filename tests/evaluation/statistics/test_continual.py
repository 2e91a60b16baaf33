"""The measures of a sequence against matrices worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from imsm.evaluation.statistics.bootstrap import resample_scores
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


def test_a_stack_gives_what_its_matrices_give_one_by_one() -> None:
    stack = np.random.default_rng(0).uniform(0, 100, (7, 5, 4))
    together = all_measures(stack, learned=4)
    alone = [all_measures(one, learned=4) for one in stack]
    for name, values in together.items():
        assert values == pytest.approx([float(one[name]) for one in alone])
    assert forgetting(stack).shape == (7, 3)


@pytest.mark.parametrize("shape", [(2, 1), (3, 3), (2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    measures = (backward_transfer, forgetting, overall_performance, forward_transfer)
    for measure in measures:
        with pytest.raises(ValueError, match="a row for the original"):
            measure(np.zeros(shape))


def _items(scores: list[float], groups: list[str | None]) -> pandas.DataFrame:
    index = pandas.Index([f"i{place}" for place in range(len(scores))], name="id")
    return pandas.DataFrame({"score.x": scores, "group": groups}, index=index)


def test_every_model_is_asked_the_same_draw() -> None:
    """A model that is right where the other is wrong adds up to 100 in each draw."""
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    frames = [_items(values, [None] * 8) for values in (right, [1 - v for v in right])]
    drawn = resample_scores(frames, "score.x", resamples=400, generator=np.random.default_rng(3))
    assert drawn.sum(axis=1) == pytest.approx(100)
    # the spread of a mean of 8 draws from a fair coin
    assert drawn[:, 0].std() == pytest.approx(100 * (0.25 / 8) ** 0.5, rel=0.15)


def test_groups_are_drawn_whole() -> None:
    frame = _items([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ["a", "a", "a", "b", "b", "b"])
    drawn = resample_scores([frame], "score.x", resamples=200, generator=np.random.default_rng(1))
    assert set(np.round(drawn[:, 0], 6)) == {0.0, 50.0, 100.0}


def test_a_metric_that_is_no_mean_is_computed_on_the_drawn_rows() -> None:
    frame = _items([1.0, 0.0, 1.0, 1.0], [None] * 4)

    def mean(rows: pandas.DataFrame) -> float:
        return 100 * float(rows["score.x"].mean())

    one, other = (
        resample_scores([frame], how, resamples=50, generator=np.random.default_rng(5)) for how in (mean, "score.x")
    )
    assert one == pytest.approx(other)


def test_other_items_are_refused() -> None:
    frames = [_items([1.0, 0.0], [None] * 2), _items([1.0, 0.0, 1.0], [None] * 3)]
    with pytest.raises(ValueError, match="different items"):
        resample_scores(frames, "score.x", resamples=5, generator=np.random.default_rng(0))
