"""Measures of forgetting against hand-worked numbers."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from imsm.evaluation.statistics.forgetting import (
    chance_level,
    harmonic_mean,
    hypervolume,
    plasticity,
    retention,
    retention_at_target,
    retention_average,
    stability,
    target_average,
    transition_shares,
    transitions,
)


def test_four_items_one_of_each_kind() -> None:
    found = transitions([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert (found.kept, found.forgotten, found.learned, found.never_known) == (2, 1, 1, 1)
    assert found.items == 5
    with pytest.raises(ValueError, match="a pair needs both"):
        transitions([1], [1, 0])


def test_shares_of_the_kinds_and_their_intervals() -> None:
    before, after = [1] * 60 + [0] * 40, [1] * 45 + [0] * 55
    found = transition_shares(before, after)
    assert [round(each.estimate, 9) for each in found.values()] == [0.45, 0.15, 0.0, 0.4]
    assert found["learned"].high > 0.03  # none of 100 is not none at all
    theirs = stats.binomtest(15, 100).proportion_ci(method="wilson")
    forgotten = found["forgotten"]
    assert (forgotten.low, forgotten.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    swapped = transition_shares(after, before)
    assert swapped["learned"] == forgotten


def test_chance_is_the_larger_class_of_yes_and_no_and_nothing_for_names() -> None:
    assert chance_level([["yes"], ["no"], ["yes"], ["yes"]]) == 75.0
    assert chance_level([["paris"], ["no"]]) == 0.0
    assert chance_level([]) == 0.0
    assert chance_level([[]]) == 0.0


def test_retention_is_corrected_for_chance() -> None:
    assert retention(60.0, 90.0, chance=50.0, items=400) == pytest.approx(25.0)
    assert retention(90.0, 90.0, chance=50.0, items=400) == 100.0
    assert retention(45.0, 90.0, chance=50.0, items=400) == pytest.approx(-12.5)


def test_an_original_at_chance_has_nothing_to_retain() -> None:
    # the paper's Llama 3.1 on MRPC: 42.43 points, the larger class is 66.5
    assert retention(60.0, 42.43, chance=66.5, items=1725) is None
    assert retention(60.0, 52.0, chance=50.0, items=400) is None  # two errors are 5 points
    assert retention(60.0, 56.0, chance=50.0, items=400) is not None
    assert retention(0.0, 0.0, chance=0.0, items=200) is None
    assert retention(1.0, 1.0, chance=0.0, items=0) is None
    assert retention(50.0, 100.0, chance=99.9, items=20) is None  # 20 of 20 are no certainty


def test_an_error_over_passages_can_be_given() -> None:
    assert retention(55.0, 56.0, chance=50.0, items=400, error=2.9) == pytest.approx(250 / 3)
    assert retention(55.0, 56.0, chance=50.0, items=400, error=3.0) is None


def test_what_is_not_finite_is_refused() -> None:
    nothing = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        retention(nothing, 50.0, chance=0.0, items=10)
    with pytest.raises(ValueError, match="not finite"):
        hypervolume([(nothing, 1.0)])
    with pytest.raises(ValueError, match="not finite"):
        retention_at_target([(nothing, 1.0), (2.0, 1.0)], 1.5)
    with pytest.raises(ValueError, match="not finite"):
        transitions([nothing], [1])


def test_the_papers_averages_are_those_that_it_printed() -> None:
    # ChatGLM3 with LoRA: MRPC accuracy and F1, CoLA, ROPES exact and F1, GSM8K
    scores = dict(zip("abcdef", (86.67, 90.10, 63.56, 74.38, 79.41, 44.50), strict=True))
    assert target_average(scores) == pytest.approx(73.10, abs=0.005)
    assert target_average(scores | {"a": None}) is None
    assert target_average({}) is None
    # tuned on ROPES: the target, then WebQ, MultiRC, MRPC, FreebaseQA
    others = {"webq": 20.47, "multirc": 66.67, "mrpc": 70.32, "freebaseqa": 38.61}
    assert retention_average(74.38, others) == pytest.approx(54.09, abs=0.005)
    assert retention_average(None, others) is None
    assert retention_average(74.38, {}) is None


def test_stability_is_over_what_is_defined() -> None:
    assert stability({"webq": 80.0, "multirc": None, "freebaseqa": 60.0}) == 70.0
    assert stability({"webq": None}) is None


def test_plasticity_is_a_share_of_what_peft_learned() -> None:
    assert plasticity(55.0, original=40.0, peft=60.0) == 75.0
    assert plasticity(55.0, original=40.0, peft=40.0) is None
    assert harmonic_mean(75.0, 50.0) == pytest.approx(60.0)
    assert harmonic_mean(-5.0, 50.0) == 0.0
    assert harmonic_mean(None, 50.0) is None


def test_hypervolume_is_the_area_of_the_union() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (1.0, 1.0), (-1.0, 9.0)]
    assert hypervolume(points) == 6.0
    assert hypervolume([]) == 0.0
    assert hypervolume([(2.0, 2.0)], reference=(1.0, 1.0)) == 1.0


def test_hypervolume_by_counting() -> None:
    rng = numpy.random.default_rng(3)
    points = rng.random((12, 2))
    drawn = rng.random((200_000, 2))
    inside = (drawn[:, None, :] <= points[None]).all(axis=2).any(axis=1).mean()
    assert hypervolume([(float(x), float(y)) for x, y in points]) == pytest.approx(inside, abs=0.005)


def test_the_frontier_between_its_points() -> None:
    sweep = [(60.0, 20.0), (50.0, 60.0), (40.0, 100.0)]
    assert retention_at_target(sweep, 55.0) == pytest.approx(40.0)
    assert retention_at_target(sweep, 60.0) == 20.0
    assert retention_at_target(sweep, 61.0) is None
    assert retention_at_target([], 61.0) is None
    humped = [(50.0, 10.0), (60.0, 40.0), (50.0, 70.0)]
    assert retention_at_target(humped, 55.0) == pytest.approx(55.0)  # the better of two crossings
