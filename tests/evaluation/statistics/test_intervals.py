"""Confidence intervals against libraries, brute force and simulations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy
import pandas
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from imsm.evaluation.statistics.intervals import (
    bootstrap_statistic_ci,
    macro_average_ci,
    mean_ci,
    paired_difference,
    proportion_ci,
    seed_ci,
)

RNG = numpy.random.default_rng(7)


def test_the_interval_equals_that_of_all_draws() -> None:
    values = [0.0, 1.0, 1.5, 2.0, 3.1, 5.0]
    means = [numpy.mean(draw) for draw in itertools.product(values, repeat=6)]  # 46,656, equally likely
    found = mean_ci(values, level=0.8, resamples=200_000)
    assert found.estimate == 2.1
    # Student's t(5) at 0.9 is 1.4759; times sqrt(6/5) it is 1.6168, beyond which are 5.3 % each
    assert (found.low, found.high) == pytest.approx(numpy.quantile(means, [0.053, 0.947]), abs=0.03)


@pytest.mark.parametrize("kind", ["right or wrong", "continuous"])
def test_without_groups_it_equals_scipys_bootstrap(kind: str) -> None:
    one, other = RNG.random((2, 300))
    if kind == "right or wrong":
        one, other = (one > 0.4).astype(float), (other > 0.5).astype(float)
    found = paired_difference(one, other)
    theirs = stats.bootstrap(
        (one - other,), numpy.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert found.estimate == pytest.approx(float((one - other).mean()))
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_groups_are_drawn_as_a_unit() -> None:
    """Ten copies of each answer in a passage add no evidence."""
    once = (RNG.random(40) > 0.5).astype(float)
    groups = [f"passage {index}" for index in range(40) for _ in range(10)]
    clustered = mean_ci(numpy.repeat(once, 10), groups=groups)
    single = mean_ci(once)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    alone = mean_ci(numpy.repeat(once, 10))
    assert alone.high - alone.low < 0.4 * (clustered.high - clustered.low)


def test_larger_groups_weigh_more() -> None:
    values, groups = [1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]
    draws = [(4 * [1.0]), [1.0, 0, 0, 0], [0.0]]
    assert mean_ci(values, groups=groups).estimate == numpy.mean(draws[1])
    found = mean_ci(values, groups=groups, level=0.2)  # of aa, ab, ba, bb: the middle third
    assert (found.low, found.high) == (0.25, 0.25)


def test_swapping_the_runs_negates_it_and_order_does_not_matter() -> None:
    one, other = RNG.random((2, 120)) > 0.5
    groups = [index // 3 for index in range(120)]
    found = paired_difference(one, other, groups=groups)
    turned = paired_difference(other, one, groups=groups)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.02)
    order = RNG.permutation(120)
    shuffled = paired_difference(one[order], other[order], groups=[groups[i] for i in order])
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "size"), [(300, 1), (300, 4), (100, 1), (100, 4), (100, 10)])
def test_a_paired_difference_is_covered_in_95_of_100(items: int, size: int) -> None:
    """1,000 simulated evaluations, in passages of ``size`` examples with a common effect."""
    rng = numpy.random.default_rng(11)
    groups = [index // size for index in range(items)] if size > 1 else None
    deviation = 0.5 if size > 1 else 0.0
    spread = (2 + deviation**2) ** 0.5
    truth = stats.norm.cdf(0.4 / spread) - stats.norm.cdf(-0.1 / spread)
    covered = 0
    for number in range(1000):
        effect = numpy.repeat(rng.normal(0, deviation, items // size), size)
        known, noise_one, noise_other = rng.normal(size=(3, items))
        one = (known + effect + noise_one > -0.4).astype(float)
        other = (known - effect + noise_other > 0.1).astype(float)
        found = paired_difference(one, other, groups=groups, resamples=1000, seed=number)
        covered += found.low <= truth <= found.high
    assert 930 <= covered <= 970, covered


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_three_seeds_are_covered(deviation: float) -> None:
    """Seeds vary as much as the mean over examples, or much more."""
    rng = numpy.random.default_rng(3)
    covered = 0
    for number in range(1000):
        items, seeds = rng.normal(0, 0.5, 200), rng.normal(0, deviation, (3, 1))
        values = items + seeds + rng.normal(0, 0.1, (3, 200))
        found = seed_ci(list(values), resamples=200, seed=number)
        covered += found.low <= 0 <= found.high
    assert 930 <= covered <= 980, covered


def test_an_example_without_a_passage_is_its_own_group() -> None:
    values = RNG.random(60)
    own = mean_ci(values)
    for missing in ([None] * 60, [float("nan")] * 60, pandas.Series([None] * 60)):
        assert mean_ci(values, groups=missing) == own
    named = [None if index % 2 else f"p{index % 20}" for index in range(60)]
    written = [name or f"alone {index}" for index, name in enumerate(named)]
    some, all_named = (mean_ci(values, groups=each) for each in (named, written))
    assert (some.low, some.high) == pytest.approx((all_named.low, all_named.high), abs=0.01)
    assert some != own


def test_it_is_deterministic_and_fast() -> None:
    values = RNG.normal(size=2000)
    start = time.process_time()
    found = mean_ci(values)
    assert time.process_time() - start < 1.0
    assert found == mean_ci(values)
    assert found != mean_ci(values, seed=1)


def test_it_is_equivariant_to_shift_and_scale() -> None:
    values = RNG.normal(size=200)
    found, moved = mean_ci(values), mean_ci(3 + 2 * values)
    assert (moved.low, moved.high) == pytest.approx((3 + 2 * found.low, 3 + 2 * found.high))


def test_a_proportion_is_wilsons_and_not_a_point_at_0_and_1() -> None:
    right = [1.0] * 13 + [0.0] * 27
    found = proportion_ci(right)
    theirs = stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    none = proportion_ci([0.0] * 40)
    assert (none.low, none.high) == pytest.approx((0, 1.96**2 / (40 + 1.96**2)), abs=1e-4)
    every = proportion_ci([1.0] * 40, groups=[index // 4 for index in range(40)])
    assert (every.low, every.high) == pytest.approx((10 / (10 + 1.96**2), 1), abs=1e-4)
    equal = proportion_ci(numpy.repeat(right, 5), groups=[index // 5 for index in range(200)])
    assert (equal.low, equal.high) == pytest.approx((found.low, found.high), abs=1e-6)


def test_a_correlation_equals_scipys_bootstrap() -> None:
    gold, one, other = (RNG.random((3, 150)) > 0.5).astype(int)
    one[:60] = gold[:60]

    def of(predicted: numpy.ndarray) -> Callable[[numpy.ndarray], float]:
        return lambda places: float(numpy.corrcoef(gold[places], predicted[places])[0, 1])

    found = bootstrap_statistic_ci(of(one), of(other), items=150)
    assert found.estimate == pytest.approx(matthews_corrcoef(gold, one) - matthews_corrcoef(gold, other))
    theirs = stats.bootstrap(
        (gold, one, other),
        lambda g, a, b: numpy.corrcoef(g, a)[0, 1] - numpy.corrcoef(g, b)[0, 1],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=3,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)


def test_a_statistic_that_is_a_mean_has_the_means_interval() -> None:
    one, other = (RNG.random((2, 120)) > 0.5).astype(float)
    groups = [index // 3 for index in range(120)]
    found = bootstrap_statistic_ci(
        lambda places: float(one[places].mean()),
        lambda places: float(other[places].mean()),
        items=120,
        groups=groups,
        resamples=4000,
    )
    mean = paired_difference(one, other, groups=groups)
    assert found.estimate == pytest.approx(mean.estimate)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), abs=0.02)


def test_variation_between_seeds_widens_the_interval() -> None:
    base = (RNG.random(400) > 0.5).astype(float)
    one = mean_ci(base)
    assert seed_ci([base]) == one
    equal = seed_ci([base, base, base])
    assert (equal.low, equal.high) == pytest.approx((one.low, one.high), abs=0.003)
    separate = seed_ci([base - 0.3, base, base + 0.3])
    assert separate.estimate == pytest.approx(equal.estimate)
    assert separate.high - separate.low > 2 * (equal.high - equal.low)


def test_without_variation_of_examples_it_is_students_t() -> None:
    """Within a seed all examples are equal: only the three means vary."""
    scores = [0.61, 0.66, 0.58]
    found = seed_ci([numpy.full(50, score) for score in scores], resamples=200_000)
    theirs = stats.ttest_1samp(scores, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    level = seed_ci([numpy.full(50, 0.6)] * 3)
    assert (level.low, level.high) == pytest.approx((0.6, 0.6))


def test_an_average_of_tests_is_covered() -> None:
    """Two small tests, near 0 and in the middle: 1,000 simulations."""
    rng = numpy.random.default_rng(0)
    truth = numpy.array([0.08, 0.5])
    covered, means, widths = 0, [], []
    for number in range(1000):
        tests = [rng.random(150) < share for share in truth]
        found = macro_average_ci(
            [mean_ci(test.astype(float), resamples=500, seed=number) for test in tests], tests=["few", "many"]
        )
        covered += found.low <= truth.mean() <= found.high
        means.append(found.estimate)
        widths.append(found.high - found.low)
    assert 930 <= covered <= 970
    assert numpy.mean(widths) == pytest.approx(2 * 1.96 * numpy.std(means), rel=0.08)
    alone = mean_ci([0.0, 1.0, 1.0])
    assert macro_average_ci([alone], tests=["a"]) == alone
    with pytest.raises(ValueError, match="of one level"):
        macro_average_ci([], tests=[])


def test_an_average_of_scores_on_one_test_is_covered() -> None:
    """Two equal scores on one test, and a score on another test."""
    rng = numpy.random.default_rng(0)
    covered = narrow = 0
    for number in range(1000):
        one, other = (mean_ci((rng.random(150) < 0.5).astype(float), resamples=500, seed=number) for _ in range(2))
        found = macro_average_ci([one, one, other], tests=["a", "a", "b"])
        covered += found.low <= 0.5 <= found.high
        separate = macro_average_ci([one, one, other], tests=["a", "a again", "b"])
        narrow += separate.low <= 0.5 <= separate.high
    assert 930 <= covered <= 970
    assert narrow < 930


def test_without_variation_the_interval_is_a_point() -> None:
    point = paired_difference([1, 1, 0], [1, 1, 0])
    assert (point.estimate, point.low, point.high) == (0, 0, 0)
    assert mean_ci([0.3]).high == 0.3


def test_invalid_seeds_and_statistics_are_rejected() -> None:
    with pytest.raises(ValueError, match="the same examples for each"):
        seed_ci([[1, 0], [1]])
    with pytest.raises(ValueError, match="at least one seed"):
        seed_ci([])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_statistic_ci(lambda _: float("nan"), None, items=3)
    with pytest.raises(ValueError, match="resamples=0"):
        mean_ci([1, 0], resamples=0)
    with pytest.raises(ValueError, match="3 groups for 2"):
        mean_ci([1, 0], groups=["a", "b", "c"])
