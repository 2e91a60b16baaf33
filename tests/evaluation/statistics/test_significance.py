"""Intervals and tests against libraries, brute force and simulated ledgers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy
import pandas
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from imsm.evaluation.statistics.intervals import (
    bootstrap_statistic_ci,
    macro_average_ci,
    mean_ci,
    paired_difference,
    proportion_ci,
    seed_ci,
)
from imsm.evaluation.statistics.significance import (
    holm,
    mcnemar,
    minimum_detectable_difference,
    paired_t,
    roc_auc,
    student_t,
)

RNG = numpy.random.default_rng(7)


def test_all_draws_of_six_items_give_the_interval() -> None:
    values = [0.0, 1.0, 1.5, 2.0, 3.1, 5.0]
    means = [numpy.mean(draw) for draw in itertools.product(values, repeat=6)]  # 46,656, all equal
    found = mean_ci(values, level=0.8, resamples=200_000)
    assert found.estimate == 2.1
    # Student's t(5) at 0.9 is 1.4759; times sqrt(6/5) it is 1.6168, beyond which lie 5.3 % each
    assert (found.low, found.high) == pytest.approx(numpy.quantile(means, [0.053, 0.947]), abs=0.03)


@pytest.mark.parametrize("kind", ["right or wrong", "continuous"])
def test_without_groups_it_is_scipys_bootstrap(kind: str) -> None:
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


def test_groups_are_drawn_whole() -> None:
    """Each passage answered alike, ten times over, is no more evidence than once."""
    once = (RNG.random(40) > 0.5).astype(float)
    groups = [f"passage {place}" for place in range(40) for _ in range(10)]
    clustered = mean_ci(numpy.repeat(once, 10), groups=groups)
    single = mean_ci(once)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    alone = mean_ci(numpy.repeat(once, 10))
    assert alone.high - alone.low < 0.4 * (clustered.high - clustered.low)


def test_groups_of_unequal_size_weigh_by_their_items() -> None:
    values, groups = [1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]
    draws = [(4 * [1.0]), [1.0, 0, 0, 0], [0.0]]
    assert mean_ci(values, groups=groups).estimate == numpy.mean(draws[1])
    found = mean_ci(values, groups=groups, level=0.2)  # of aa, ab, ba, bb: the middle third
    assert (found.low, found.high) == (0.25, 0.25)


def test_it_turns_with_the_arms_and_not_with_the_order() -> None:
    one, other = RNG.random((2, 120)) > 0.5
    groups = [place // 3 for place in range(120)]
    found = paired_difference(one, other, groups=groups)
    turned = paired_difference(other, one, groups=groups)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.02)
    order = RNG.permutation(120)
    shuffled = paired_difference(one[order], other[order], groups=[groups[i] for i in order])
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "size"), [(300, 1), (300, 4), (100, 1), (100, 4), (100, 10)])
def test_the_interval_of_a_paired_accuracy_difference_covers_in_95_of_100(items: int, size: int) -> None:
    """1,000 simulated ledgers, in passages of ``size`` items with a common luck."""
    rng = numpy.random.default_rng(11)
    groups = [place // size for place in range(items)] if size > 1 else None
    deviation = 0.5 if size > 1 else 0.0
    spread = (2 + deviation**2) ** 0.5
    truth = stats.norm.cdf(0.4 / spread) - stats.norm.cdf(-0.1 / spread)
    covered = 0
    for number in range(1000):
        luck = numpy.repeat(rng.normal(0, deviation, items // size), size)
        known, noise_one, noise_other = rng.normal(size=(3, items))
        one = (known + luck + noise_one > -0.4).astype(float)
        other = (known - luck + noise_other > 0.1).astype(float)
        found = paired_difference(one, other, groups=groups, resamples=1000, seed=number)
        covered += found.low <= truth <= found.high
    assert 930 <= covered <= 970, covered


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_three_seeds_cover_too(deviation: float) -> None:
    """Seeds that differ by as much as items make the mean vary, or by much more."""
    rng = numpy.random.default_rng(3)
    covered = 0
    for number in range(1000):
        items, seeds = rng.normal(0, 0.5, 200), rng.normal(0, deviation, (3, 1))
        values = items + seeds + rng.normal(0, 0.1, (3, 200))
        found = seed_ci(list(values), resamples=200, seed=number)
        covered += found.low <= 0 <= found.high
    assert 930 <= covered <= 980, covered


def test_an_item_without_a_passage_is_its_own() -> None:
    values = RNG.random(60)
    own = mean_ci(values)
    for missing in ([None] * 60, [float("nan")] * 60, pandas.Series([None] * 60)):
        assert mean_ci(values, groups=missing) == own
    named = [None if place % 2 else f"p{place % 20}" for place in range(60)]
    written = [name or f"alone {place}" for place, name in enumerate(named)]
    some, all_named = (mean_ci(values, groups=each) for each in (named, written))
    assert (some.low, some.high) == pytest.approx((all_named.low, all_named.high), abs=0.01)
    assert some != own


def test_it_is_the_same_again_and_fast() -> None:
    values = RNG.normal(size=2000)
    start = time.process_time()
    found = mean_ci(values)
    assert time.process_time() - start < 1.0
    assert found == mean_ci(values)
    assert found != mean_ci(values, seed=1)


def test_a_shift_and_a_scale_go_through() -> None:
    values = RNG.normal(size=200)
    found, moved = mean_ci(values), mean_ci(3 + 2 * values)
    assert (moved.low, moved.high) == pytest.approx((3 + 2 * found.low, 3 + 2 * found.high))


def test_a_share_is_wilsons_and_no_point_at_its_ends() -> None:
    right = [1.0] * 13 + [0.0] * 27
    found = proportion_ci(right)
    theirs = stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    none = proportion_ci([0.0] * 40)
    assert (none.low, none.high) == pytest.approx((0, 1.96**2 / (40 + 1.96**2)), abs=1e-4)
    every = proportion_ci([1.0] * 40, groups=[place // 4 for place in range(40)])
    assert (every.low, every.high) == pytest.approx((10 / (10 + 1.96**2), 1), abs=1e-4)
    alike = proportion_ci(numpy.repeat(right, 5), groups=[place // 5 for place in range(200)])
    assert (alike.low, alike.high) == pytest.approx((found.low, found.high), abs=1e-6)


def test_a_correlation_is_computed_anew_in_every_draw() -> None:
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


def test_a_total_that_is_a_mean_has_the_means_interval() -> None:
    one, other = (RNG.random((2, 120)) > 0.5).astype(float)
    groups = [place // 3 for place in range(120)]
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


def test_seeds_widen_the_interval_by_their_own_variation() -> None:
    base = (RNG.random(400) > 0.5).astype(float)
    one = mean_ci(base)
    assert seed_ci([base]) == one
    alike = seed_ci([base, base, base])
    assert (alike.low, alike.high) == pytest.approx((one.low, one.high), abs=0.003)
    apart = seed_ci([base - 0.3, base, base + 0.3])
    assert apart.estimate == pytest.approx(alike.estimate)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_seeds_that_alone_vary_are_students_t() -> None:
    """All items alike within a seed: what is left is the mean of three numbers."""
    scores = [0.61, 0.66, 0.58]
    found = seed_ci([numpy.full(50, score) for score in scores], resamples=200_000)
    theirs = stats.ttest_1samp(scores, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    level = seed_ci([numpy.full(50, 0.6)] * 3)
    assert (level.low, level.high) == pytest.approx((0.6, 0.6))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 9), (25, 10), (7, 7)])
def test_mcnemar_is_statsmodels(better: int, worse: int) -> None:
    one = [1] * better + [0] * worse + [1] * 5 + [0] * 4
    other = [0] * better + [1] * worse + [1] * 5 + [0] * 4
    found = mcnemar(one, other)
    assert (found.better, found.worse) == (better, worse)
    table = [[5, better], [worse, 4]]
    theirs = statsmodels_mcnemar(table, exact=True).pvalue if better + worse else 1.0
    assert found.p_value == pytest.approx(theirs)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04: times 3, 2, 1, never below the one before
    assert holm({"b": 0.04, "a": 0.01, "c": 0.02}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.04})
    assert holm({}) == {}


def test_t_tests_are_scipys() -> None:
    one, other = [61.2, 60.1, 62.5], [59.0, 60.4, 58.8]
    found, paired = student_t(one, other), paired_t(one, other)
    assert found is not None and paired is not None
    theirs, theirs_paired = stats.ttest_ind(one, other), stats.ttest_rel(one, other)
    assert (found.t, found.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (paired.t, paired.p_value) == pytest.approx((theirs_paired.statistic, theirs_paired.pvalue))
    assert found.degrees == 4


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_tested_is_no_number() -> None:
    assert student_t([1.0], [2.0]) is None
    assert paired_t([1.0], [2.0]) is None
    equal = paired_t([3.0, 4.0], [1.0, 2.0])
    assert equal is not None and (equal.difference, equal.p_value) == (2.0, None)
    noisy = paired_t([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])  # equal but for rounding
    assert noisy is not None and noisy.p_value is None
    level = student_t([0.1 + 0.2, 0.3], [0.1, 0.1])
    assert level is not None and level.p_value is None
    steady = student_t([61.0, 61.0, 61.0], [59.0, 60.4, 58.8])
    assert steady is not None and steady.t == pytest.approx((61 - 59.4) / (((0.16 + 1 + 0.36) / 2 + 0) / 3) ** 0.5)
    assert minimum_detectable_difference([1.0, 1, 1], [0.0, 0, 0]) is None
    assert minimum_detectable_difference([0.3, 0.4, 0.5], [0.1, 0.2, 0.3]) is None
    assert minimum_detectable_difference([1.0, 0, 1, 0], [0.0, 0, 0, 0], groups=[1, 1, 2, 2]) is None
    assert roc_auc([0.1, 0.2], [1, 1]) is None
    point = paired_difference([1, 1, 0], [1, 1, 0])
    assert (point.estimate, point.low, point.high) == (0, 0, 0)
    assert mean_ci([0.3]).high == 0.3


def test_a_gate_that_tells_right_from_wrong() -> None:
    assert roc_auc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert roc_auc([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1]) == 0.5


def test_what_is_detectable_is_found_in_four_of_five() -> None:
    rng = numpy.random.default_rng(5)
    one, other = rng.normal(size=(2, 50))
    least = minimum_detectable_difference(one, other)
    assert least is not None
    spread = float((one - other).std(ddof=1))
    drawn = rng.normal(least, spread, (2000, 50))
    found = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert numpy.mean(found) == pytest.approx(0.8, abs=0.03)


def test_what_passages_repeat_detects_no_more() -> None:
    one, other = RNG.normal(size=(2, 50))
    groups = [place // 4 for place in range(200)]
    repeated = minimum_detectable_difference(numpy.repeat(one, 4), numpy.repeat(other, 4), groups=groups)
    assert repeated == pytest.approx(minimum_detectable_difference(one, other))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_ci([])
    with pytest.raises(ValueError, match="not finite"):
        mean_ci([1.0, float("nan")])
    with pytest.raises(ValueError, match="a pair needs both"):
        paired_difference([1, 0], [1])
    with pytest.raises(ValueError, match="3 groups for 2"):
        mean_ci([1, 0], groups=["a", "b", "c"])
    with pytest.raises(ValueError, match="right \\(1\\) or wrong"):
        mcnemar([0.5, 1], [1, 0])
    with pytest.raises(ValueError, match="level=95"):
        mean_ci([1, 0], level=95)
    with pytest.raises(ValueError, match="resamples=0"):
        mean_ci([1, 0], resamples=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": float("nan"), "b": 0.1})
    with pytest.raises(ValueError, match="the same items of each"):
        seed_ci([[1, 0], [1]])
    with pytest.raises(ValueError, match="at least one seed"):
        seed_ci([])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_statistic_ci(lambda _: float("nan"), None, items=3)


def test_a_mean_of_tests_covers_as_its_tests_do() -> None:
    """Two tests of few items, near 0 and in the middle: 1,000 ledgers, brute force beside it."""
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


def test_a_mean_of_scores_on_the_same_items_covers_too() -> None:
    """Two scores of one test, the second equal to the first item by item, beside another test."""
    rng = numpy.random.default_rng(0)
    covered = narrow = 0
    for number in range(1000):
        one, other = (mean_ci((rng.random(150) < 0.5).astype(float), resamples=500, seed=number) for _ in range(2))
        found = macro_average_ci([one, one, other], tests=["a", "a", "b"])
        covered += found.low <= 0.5 <= found.high
        apart = macro_average_ci([one, one, other], tests=["a", "a again", "b"])
        narrow += apart.low <= 0.5 <= apart.high
    assert 930 <= covered <= 970
    assert narrow < 930
