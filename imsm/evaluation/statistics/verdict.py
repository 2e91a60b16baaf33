"""Decide whether a tuned model forgot more than a margin, from paired differences on several tests.

For a test with margin m, D is the true change (tuned minus original). Two one-sided hypotheses are tested at 5 %:

    not within the margin   D <= -m    rejected: the change is above -m
    within the margin       D >= -m    rejected: the change is below -m

The verdict is PASS if the first is rejected on every test. This is an intersection-union test, whose level is 5 %
without a correction (Berger 1982, Technometrics 24). It is FAIL if the second is rejected on at least one test, with
Holm's correction over the tests. Otherwise the evidence is insufficient.

p-values are those of the unconditional exact test of paired proportions: N pairs, of which some gain and some lose
one unit, form a trinomial. Outcomes are ordered by the score statistic of Tango (1998, Statistics in Medicine 17),
and the nuisance parameter is maximized over a confidence set (Berger and Boos 1994, JASA 89; for this test Sidik
2003, Statistics in Medicine 22). Neither the bootstrap nor the score test alone keeps 5 % where few pairs differ:
without a difference in 100 pairs the bootstrap's interval is a point, which a true loss of 2 points gives in 13 %
of all samples, and with 30 pairs and losses only, the score test finds a loss beyond 2 points in 12 %.

Other data are reduced to such counts by `count_pairs`. Symbols: N examples, C groups of examples that share a passage.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import ceil, floor

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import bdtr

from imsm.evaluation.statistics.bootstrap import cluster_sums
from imsm.evaluation.statistics.significance import holm
from imsm.evaluation.statistics.validation import Array, as_finite_array

ALPHA = 0.05
"""Level of each verdict: the largest probability of a false PASS, and of a false FAIL."""
_NUISANCE_ALPHA = 0.001
"""Level of the confidence set of the nuisance parameter; it is added to the p-value."""
_NUISANCE_POINTS = 24
_WINDOW = 1e-7
"""Probability of the outcomes that are left out of the sum, on each side."""
_POWER = 0.8
"""Probability of a decision with the number of items that is reported."""
_MAX_ITEMS = 1_000_000
_BOUND_STEP = 0.01
"""Accuracy of the bounds, in points."""
_ROUNDING = 1e-9


class Verdict(StrEnum):
    """The verdict on a model, or on one test."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Paired data of one test as a trinomial: independent pairs of which some gain or lose one unit.

    Attributes:
        estimate: Mean change in points.
        unit: Change of one pair that gains or loses, in points.
        pairs: Effective number of independent pairs.
        gains: Pairs that gain, possibly a fraction.
        losses: Pairs that lose, likewise.
        largest: Largest absolute change of a pair, in points.
        can_gain: Whether a pair can gain at all; if not, the test is the binomial one.
    """

    estimate: float
    unit: float
    pairs: float
    gains: float
    losses: float
    largest: float
    can_gain: bool = True


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The result of one test.

    Attributes:
        estimate: Mean change in points.
        p_pass: p-value of the hypothesis that the change is not above the negative margin.
        p_fail: p-value of the hypothesis that the change is not below it, with Holm's correction.
        factor: The number of items that would decide with a probability of 80 %, if the observed shares of
            gains and losses are the true ones, divided by the present number; None if no number is known
            to decide, 1 for a decided test.
    """

    estimate: float
    p_pass: float
    p_fail: float
    verdict: Verdict
    factor: float | None


def count_pairs(
    differences: ArrayLike, *, groups: Sequence[object] | None = None, largest: float = 100.0, can_gain: bool = True
) -> PairCounts:
    """Reduce differences (N,) in points to counts of gains and losses of one unit.

        unit   = (sum d^2 + largest^2) / (sum |d| + largest)
        gains  = sum max(d, 0) / unit,    losses = sum max(-d, 0) / unit

    Mean and second moment of the trinomial are those of the differences, with one more pair of the largest change,
    because a sample of small changes does not exclude large ones. Right and wrong answers
    (differences of 100, 0 and -100) give their numbers. Correlated pairs of a group count as fewer: the number of
    pairs is divided by the design effect times (t(C - 1) / t(N - 1))^2 (Korn and Graubard 1998, Survey Methodology
    24), where one more group of mean size, all of whose pairs change, is part of the design effect.

    Args:
        differences: Tuned minus original by example, in points.
        groups: Labels of the groups; None for an example that is its own group.
        largest: Largest absolute change of an example, in points.
        can_gain: False for differences to a perfect score, whose unit is the largest change.

    Raises:
        ValueError: No values, a value that is not finite, or unequal numbers of labels and values.
    """
    array = as_finite_array(differences)
    unit = float(((array**2).sum() + largest**2) / (numpy.abs(array).sum() + largest)) if can_gain else largest
    share = 1 / _design_effect(array, groups, largest)
    return PairCounts(
        estimate=float(array.mean()),
        unit=unit,
        pairs=len(array) * share,
        gains=float(numpy.maximum(array, 0).sum()) / unit * share,
        losses=float(numpy.maximum(-array, 0).sum()) / unit * share,
        largest=largest,
        can_gain=can_gain,
    )


def _design_effect(array: Array, groups: Sequence[object] | None, largest: float) -> float:
    """Return the number of pairs that carry as much evidence as one independent pair, at least 1."""
    sums, sizes = cluster_sums(array[:, None], groups)
    centered, residuals = array - array.mean(), sums[:, 0] - array.mean() * sizes
    # As a pair sees it: the mean size of the group that a pair is in.
    size = float(sizes @ sizes / sizes.sum())
    effect = (residuals @ residuals + (size * largest) ** 2) / (centered @ centered + size * largest**2)
    if len(sizes) == len(array):
        return 1.0
    widths = [stats.t.isf(ALPHA, max(count - 1, 1)) for count in (len(sizes), len(array))]
    return max(1.0, float(effect)) * float(widths[0] / widths[1]) ** 2


def pseudo_values(
    statistic: Callable[[NDArray[numpy.int64]], float], *, items: int, kinds: Sequence[Hashable]
) -> Array:
    """Return the jackknife's pseudo-values (N,) of a statistic that is not a mean (Tukey 1958).

        N theta - (N - 1) theta_(-i)

    Their mean estimates the statistic, and their differences act as those of a mean.

    Args:
        statistic: Computes the statistic of the examples at the given indices.
        items: N, at least 2.
        kinds: By example; examples of one kind have the same pseudo-value, which is computed once.
    """
    indices = numpy.arange(items)
    total = statistic(indices)
    found: dict[Hashable, float] = {}
    for index, kind in enumerate(kinds):
        if kind not in found:
            found[kind] = items * total - (items - 1) * statistic(numpy.delete(indices, index))
    return numpy.array([found[kind] for kind in kinds])


def decide(
    tests: Mapping[str, Sequence[PairCounts]], *, margins: Mapping[str, float]
) -> tuple[Verdict, dict[str, Decision]]:
    """Return the verdict on several tests, and the decision of each.

    Args:
        tests: Counts by test. Several of one test are repeated measurements: the largest p-value is used, so
            that the verdict holds for each of them.
        margins: Largest loss by test that is allowed, in points.

    Raises:
        ValueError: No counts of a test.
    """
    p_pass, p_fail = ({name: 0.0 for name in tests} for _ in range(2))
    for name, repeats in tests.items():
        if not repeats:
            raise ValueError(f"{name}: has no counts")
        p_pass[name] = _largest_p(p_above, repeats, margins[name])
        p_fail[name] = _largest_p(p_below, repeats, margins[name])
    adjusted = holm(p_fail)
    decisions = {
        name: _decide_test(repeats, margins[name], p_pass=p_pass[name], p_fail=adjusted[name], family=len(tests))
        for name, repeats in tests.items()
    }
    verdicts = {each.verdict for each in decisions.values()}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL, decisions
    return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.INSUFFICIENT_EVIDENCE, decisions


def change_bounds(repeats: Sequence[PairCounts], *, margin: float) -> tuple[float, float]:
    """Return the one-sided lower and upper 95 % bounds of the change in points, by inversion of the tests.

    They agree with the p-values at the margin, without Holm's correction. Of repeated measurements the widest.
    """
    low = min(_bound(p_above, counts, margin, side=-1) for counts in repeats)
    high = max(_bound(p_below, counts, margin, side=1) for counts in repeats)
    return low, high


def p_above(counts: PairCounts, margin: float) -> float:
    """Return the p-value of the hypothesis that the change is at most ``-margin`` points.

    Fractions are rounded to fewer gains and more losses.
    """
    pairs, gains, losses, share = _in_units(counts, margin)
    losses = min(pairs, ceil(losses - _ROUNDING))
    gains = min(pairs - losses, floor(gains + _ROUNDING))
    return _exact_p(pairs, gains, losses, share, can_gain=counts.can_gain, above=True)


def p_below(counts: PairCounts, margin: float) -> float:
    """Return the p-value of the hypothesis that the change is at least ``-margin`` points.

    Fractions are rounded to more gains and fewer losses.
    """
    pairs, gains, losses, share = _in_units(counts, margin)
    gains = min(pairs, ceil(gains - _ROUNDING))
    losses = min(pairs - gains, floor(losses + _ROUNDING))
    return _exact_p(pairs, gains, losses, share, can_gain=counts.can_gain, above=False)


def _largest_p(p_value: Callable[[PairCounts, float], float], repeats: Sequence[PairCounts], margin: float) -> float:
    return max(p_value(counts, margin) for counts in repeats)


def _decide_test(
    repeats: Sequence[PairCounts], margin: float, *, p_pass: float, p_fail: float, family: int
) -> Decision:
    verdict = Verdict.INSUFFICIENT_EVIDENCE
    if p_pass <= ALPHA:
        verdict = Verdict.PASS
    elif p_fail <= ALPHA:
        verdict = Verdict.FAIL
    factors = [_factor(counts, margin, family) for counts in repeats]
    known = [factor for factor in factors if factor is not None]
    factor: float | None = 1.0
    if verdict is Verdict.INSUFFICIENT_EVIDENCE:
        factor = max(known) if len(known) == len(factors) else None
    estimate = float(numpy.mean([counts.estimate for counts in repeats]))
    return Decision(estimate=estimate, p_pass=p_pass, p_fail=p_fail, verdict=verdict, factor=factor)


def _bound(p_value: Callable[[PairCounts, float], float], counts: PairCounts, margin: float, *, side: int) -> float:
    """Return the change furthest from the estimate (on the side of the sign) that is not rejected, in points."""
    rejected, kept = side * counts.largest, counts.estimate
    if p_value(counts, -rejected) > ALPHA:
        return rejected
    # The margin first, so that bound and verdict agree there.
    change = -margin
    while abs(rejected - kept) > _BOUND_STEP:
        if min(rejected, kept) < change < max(rejected, kept):
            if p_value(counts, -change) <= ALPHA:
                rejected = change
            else:
                kept = change
        change = (rejected + kept) / 2
    return rejected


def _factor(counts: PairCounts, margin: float, family: int) -> float | None:
    """Return the factor of a `Decision` by the normal approximation, with one more pair that changes."""
    distance = (counts.estimate + margin) / counts.unit
    discordant = (counts.gains + counts.losses + 1) / (counts.pairs + 1)
    variance = max(discordant - (counts.estimate / counts.unit) ** 2, 1 / (counts.pairs + 1))
    level = ALPHA if distance > 0 else ALPHA / family
    width = float(stats.norm.isf(level) + stats.norm.ppf(_POWER))
    if not distance or (needed := variance * (width / distance) ** 2) > _MAX_ITEMS:
        return None
    return max(1.0, needed / counts.pairs)


def _in_units(counts: PairCounts, margin: float) -> tuple[int, float, float, float]:
    """Return pairs, gains, losses and the margin, the last three in units of at least twice the margin."""
    # A difference of two proportions is at most one unit.
    scale = max(1.0, 2 * abs(margin) / counts.unit) if counts.can_gain else 1.0
    pairs = max(1, floor(counts.pairs + _ROUNDING))
    return pairs, counts.gains / scale, counts.losses / scale, margin / counts.unit / scale


@lru_cache(maxsize=100_000)
def _exact_p(pairs: int, gains: int, losses: int, margin: float, *, can_gain: bool, above: bool) -> float:
    """Return the exact p-value for the boundary share(losses) - share(gains) = margin.

    ``above`` tests against a larger change (fewer losses), else against a smaller one.
    """
    if margin < 0:
        return _exact_p(pairs, losses, gains, -margin, can_gain=True, above=not above)
    shares, added = numpy.zeros(1), 0.0
    if can_gain:
        # Clopper and Pearson's interval of the share of pairs that change, which is 2 q + margin.
        changed, tail = gains + losses, _NUISANCE_ALPHA / 2
        low = stats.beta.ppf(tail, changed, pairs - changed + 1) if changed else 0.0
        high = stats.beta.isf(tail, changed + 1, pairs - changed) if changed < pairs else 1.0
        first, last = ((min(max(float(end), margin), 1.0) - margin) / 2 for end in (low, high))
        shares, added = numpy.linspace(first, last, _NUISANCE_POINTS), _NUISANCE_ALPHA
    gained = _window(pairs, shares[0], shares[-1])[:, None]
    lost = _window(pairs, shares[0] + margin, shares[-1] + margin)[None, :]
    scores = _score(pairs, gained, lost, margin)
    observed = float(_score(pairs, numpy.array(gains), numpy.array(losses), margin))
    # The statistic falls with the losses, so that for each number of gains a range of losses is as extreme.
    if above:
        end = lost[0, 0] - 1 + (scores >= observed - _ROUNDING).sum(axis=1, keepdims=True)
    else:
        end = lost[0, -1] - (scores <= observed + _ROUNDING).sum(axis=1, keepdims=True)
    # (gains, shares)
    chance = numpy.divide(shares + margin, 1 - shares, out=numpy.ones_like(shares), where=shares < 1)
    chance = numpy.clip(chance, 0, 1)[None, :]
    extreme = numpy.where(end < 0, 0.0, bdtr(numpy.clip(end, 0, pairs - gained), pairs - gained, chance))
    weights = stats.binom.pmf(gained, pairs, shares[None, :])
    p_value = float((weights * (extreme if above else 1 - extreme)).sum(axis=0).max())
    # The windows leave out at most this much.
    return min(1.0, p_value + added + 4 * _WINDOW)


def _window(pairs: int, low: float, high: float) -> NDArray[numpy.int64]:
    """Return the counts that are not improbable for every share between two."""
    first, last = stats.binom.ppf(_WINDOW, pairs, low), stats.binom.isf(_WINDOW, pairs, high)
    return numpy.arange(int(max(first, 0)), int(min(last, pairs)) + 1)


def _score(pairs: int, gains: NDArray[numpy.int64], losses: NDArray[numpy.int64], margin: float) -> Array:
    """Return Tango's statistic: (gains - losses + N m) / sqrt(N (2 q + m - m^2)), q the estimate at the boundary."""
    # The likelihood's derivative by q is zero where 2 N q^2 + b q - (1 - m) m gains = 0.
    linear = 2 * margin * (pairs - losses) - (1 - margin) * (gains + losses)
    share = (numpy.sqrt(linear**2 + 8 * pairs * (1 - margin) * margin * gains) - linear) / (4 * pairs)
    variance = pairs * numpy.maximum(2 * share + margin - margin**2, 0)
    difference = gains - losses + pairs * margin
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return numpy.where(numpy.abs(difference) < _ROUNDING, 0.0, difference / numpy.sqrt(variance))
