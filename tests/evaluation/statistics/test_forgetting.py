"""Measures of forgetting against hand-worked numbers."""

from __future__ import annotations

import numpy
import pytest

from imsm.evaluation.statistics.forgetting import (
    chance_level,
    harmonic_mean,
    hypervolume,
    outcomes,
    plasticity,
    retention,
    retention_at_target,
    stability,
    transitions,
)


def test_each_outcome_is_counted() -> None:
    found = transitions([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert (found.kept, found.forgotten, found.learned, found.never_known) == (2, 1, 1, 1)
    assert found.items == 5
    assert outcomes([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]) == ["kept", "forgotten", "learned", "never_known", "kept"]
    with pytest.raises(ValueError, match="a pair needs both"):
        transitions([1], [1, 0])


def test_chance_is_the_larger_class_of_yes_no_references_else_0() -> None:
    assert chance_level([["yes"], ["no"], ["yes"], ["yes"]]) == 75.0
    assert chance_level([["paris"], ["no"]]) == 0.0
    assert chance_level([]) == 0.0
    assert chance_level([[]]) == 0.0


def test_retention_is_corrected_for_chance() -> None:
    assert retention(60.0, 90.0, chance=50.0, items=400) == pytest.approx(25.0)
    assert retention(90.0, 90.0, chance=50.0, items=400) == 100.0
    assert retention(45.0, 90.0, chance=50.0, items=400) == pytest.approx(-12.5)


def test_retention_is_undefined_for_an_original_at_chance() -> None:
    # the paper's Llama 3.1 on MRPC: 42.43 points, the larger class is 66.5
    assert retention(60.0, 42.43, chance=66.5, items=1725) is None
    assert retention(60.0, 52.0, chance=50.0, items=400) is None  # two standard errors are 5 points
    assert retention(60.0, 56.0, chance=50.0, items=400) is not None
    assert retention(0.0, 0.0, chance=0.0, items=200) is None
    assert retention(1.0, 1.0, chance=0.0, items=0) is None
    assert retention(50.0, 100.0, chance=99.9, items=20) is None  # 20 of 20 is not certainty


def test_a_standard_error_can_be_given() -> None:
    assert retention(55.0, 56.0, chance=50.0, items=400, error=2.9) == pytest.approx(250 / 3)
    assert retention(55.0, 56.0, chance=50.0, items=400, error=3.0) is None


def test_values_that_are_not_finite_are_rejected() -> None:
    nan = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        retention(nan, 50.0, chance=0.0, items=10)
    with pytest.raises(ValueError, match="not finite"):
        hypervolume([(nan, 1.0)])
    with pytest.raises(ValueError, match="not finite"):
        retention_at_target([(nan, 1.0), (2.0, 1.0)], 1.5)
    with pytest.raises(ValueError, match="not finite"):
        transitions([nan], [1])


def test_stability_averages_the_defined_retentions() -> None:
    assert stability({"webq": 80.0, "multirc": None, "freebaseqa": 60.0}) == 70.0
    assert stability({"webq": None}) is None


def test_plasticity_is_relative_to_the_gain_of_peft() -> None:
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


def test_hypervolume_equals_a_monte_carlo_estimate() -> None:
    rng = numpy.random.default_rng(3)
    points = rng.random((12, 2))
    drawn = rng.random((200_000, 2))
    inside = (drawn[:, None, :] <= points[None]).all(axis=2).any(axis=1).mean()
    assert hypervolume([(float(x), float(y)) for x, y in points]) == pytest.approx(inside, abs=0.005)


def test_retention_is_interpolated_along_the_sweep() -> None:
    sweep = [(60.0, 20.0), (50.0, 60.0), (40.0, 100.0)]
    assert retention_at_target(sweep, 55.0) == pytest.approx(40.0)
    assert retention_at_target(sweep, 60.0) == 20.0
    assert retention_at_target(sweep, 61.0) is None
    assert retention_at_target([], 61.0) is None
    humped = [(50.0, 10.0), (60.0, 40.0), (50.0, 70.0)]
    assert retention_at_target(humped, 55.0) == pytest.approx(55.0)  # the better of two crossings
