"""Verdicts: exact tests against enumeration, levels at the margin, counts of other data."""

from __future__ import annotations

from itertools import product

import numpy
import pytest
from scipy import optimize, stats
from scipy.special import gammaln, xlogy

from imsm.evaluation.statistics.significance import holm
from imsm.evaluation.statistics.verdict import (
    PairCounts,
    Verdict,
    change_bounds,
    count_pairs,
    decide,
    p_above,
    p_below,
    pseudo_values,
)


def pairs(items: int, gains: int, losses: int) -> PairCounts:
    return count_pairs([100.0] * gains + [-100.0] * losses + [0.0] * (items - gains - losses))


def likelihood(share: float, items: int, gains: int, losses: int, margin: float) -> float:
    same = items - gains - losses
    ways = gammaln(items + 1) - gammaln(gains + 1) - gammaln(losses + 1) - gammaln(same + 1)
    return float(ways + xlogy(gains, share) + xlogy(losses, share + margin) + xlogy(same, 1 - 2 * share - margin))


def score(items: int, gains: int, losses: int, margin: float) -> float:
    """Tango's statistic with a numerical maximum of the likelihood."""
    found = optimize.minimize_scalar(
        lambda share: -likelihood(share, items, gains, losses, margin),
        bounds=(1e-9, (1 - margin) / 2 - 1e-9),
        method="bounded",
        options={"xatol": 1e-10},
    )
    variance = items * (2 * found.x + margin - margin**2)
    return float((gains - losses + items * margin) / variance**0.5)


@pytest.mark.parametrize(("gains", "losses", "margin"), [(1, 2, 0.02), (0, 3, 0.1), (4, 1, 0.05), (2, 5, 0.1)])
def test_p_values_are_those_of_a_complete_enumeration(gains: int, losses: int, margin: float) -> None:
    items = 14
    outcomes = [(g, c) for g, c in product(range(items + 1), repeat=2) if g + c <= items]
    scores = {outcome: score(items, *outcome, margin) for outcome in outcomes}
    observed = scores[gains, losses]
    changed = gains + losses
    low = stats.beta.ppf(0.0005, changed, items - changed + 1)
    high = stats.beta.isf(0.0005, changed + 1, items - changed)
    shares = [(max(end, margin) - margin) / 2 for end in numpy.linspace(max(low, margin), high, 60)]
    for p_value, extreme in (
        (p_above, [outcome for outcome in outcomes if scores[outcome] >= observed - 1e-5]),
        (p_below, [outcome for outcome in outcomes if scores[outcome] <= observed + 1e-5]),
    ):
        chances = [sum(numpy.exp(likelihood(share, items, *each, margin)) for each in extreme) for share in shares]
        expected = min(1.0, max(chances) + 0.001)
        assert p_value(pairs(items, gains, losses), 100 * margin) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("items", "gain"), [(40, 0.0), (145, 0.0), (150, 0.0), (150, 0.01), (400, 0.0), (60, 0.06), (300, 0.01)]
)
def test_at_the_margin_each_verdict_has_at_most_5_percent(items: int, gain: float) -> None:
    passed = failed = 0.0
    likely = int(stats.binom.isf(1e-3, items, gain)), int(stats.binom.isf(1e-3, items, gain + 0.02))
    for gains, losses in product(range(likely[0] + 1), range(likely[1] + 1)):
        chance = float(numpy.exp(likelihood(gain, items, gains, losses, 0.02)))
        counts = pairs(items, gains, losses)
        passed += chance * (p_above(counts, 2.0) <= 0.05)
        failed += chance * (p_below(counts, 2.0) <= 0.05)
    assert passed <= 0.05 and failed <= 0.05
    # not by refusing to decide
    assert items < 300 or (passed > 0.02 and failed > 0.01)


def test_a_required_score_is_tested_by_the_binomial_test() -> None:
    right = numpy.repeat([1.0, 0.0], [40, 10])
    counts = count_pairs(100 * (right - 1), can_gain=False)
    above, below = p_above(counts, 100 - 70.0), p_below(counts, 100 - 90.0)
    assert above == pytest.approx(stats.binomtest(40, 50, 0.7, alternative="greater").pvalue, abs=1e-6)
    assert below == pytest.approx(stats.binomtest(40, 50, 0.9, alternative="less").pvalue, abs=1e-6)


def test_verdicts_of_plain_cases() -> None:
    cases = {
        (1000, 5, 5): Verdict.PASS,
        (1000, 5, 60): Verdict.FAIL,
        (1000, 30, 45): Verdict.INSUFFICIENT_EVIDENCE,
        # no difference in few pairs proves nothing
        (60, 0, 0): Verdict.INSUFFICIENT_EVIDENCE,
        (200, 0, 0): Verdict.PASS,
        (3, 0, 3): Verdict.INSUFFICIENT_EVIDENCE if p_below(pairs(3, 0, 3), 2.0) > 0.05 else Verdict.FAIL,
    }
    for (items, gains, losses), expected in cases.items():
        verdict, tests = decide({"a": [pairs(items, gains, losses)]}, margins={"a": 2.0})
        assert verdict is expected is tests["a"].verdict
        low, high = change_bounds([pairs(items, gains, losses)], margin=2.0)
        estimate = 100 * (gains - losses) / items
        assert low <= estimate <= high
        assert (low > -2.0) == (expected is Verdict.PASS) and (high < -2.0) == (expected is Verdict.FAIL)


def test_one_undecided_test_prevents_a_pass_and_one_failed_test_fails() -> None:
    good, open_, bad = [pairs(1000, 5, 5)], [pairs(60, 0, 0)], [pairs(1000, 5, 60)]
    assert decide({"a": good, "b": open_}, margins={"a": 2.0, "b": 2.0})[0] is Verdict.INSUFFICIENT_EVIDENCE
    assert decide({"a": good, "b": open_, "c": bad}, margins=dict.fromkeys("abc", 2.0))[0] is Verdict.FAIL
    assert decide({}, margins={})[0] is Verdict.INSUFFICIENT_EVIDENCE


def test_a_fail_is_corrected_for_the_number_of_tests() -> None:
    counts = pairs(300, 3, 17)
    alone = p_below(counts, 2.0)
    assert 0.0125 < alone <= 0.05
    others = {str(number): [pairs(300, 3, 3)] for number in range(3)}
    verdict, tests = decide({"a": [counts], **others}, margins=dict.fromkeys(["a", *others], 2.0))
    assert verdict is not Verdict.FAIL
    raw = {"a": alone} | {name: p_below(each[0], 2.0) for name, each in others.items()}
    assert tests["a"].p_fail == holm(raw)["a"]


def test_repeated_groups_add_no_evidence() -> None:
    rng = numpy.random.default_rng(2)
    changes = 100.0 * rng.choice([1, -1, 0], p=[0.05, 0.1, 0.85], size=200)
    once = count_pairs(changes)
    copies = count_pairs(numpy.repeat(changes, 5), groups=[number // 5 for number in range(1000)])
    assert copies.estimate == pytest.approx(once.estimate)
    assert copies.pairs == pytest.approx(200, rel=0.03) and copies.losses == pytest.approx(once.losses, rel=0.03)
    # groups without a change may hide losses of complete groups
    assert count_pairs(numpy.zeros(1000), groups=[number // 5 for number in range(1000)]).pairs <= 200
    assert count_pairs(changes, groups=list(range(200))) == once


def test_small_changes_have_mean_and_second_moment_of_the_data() -> None:
    changes = numpy.random.default_rng(1).normal(-3, 10, 5000)
    counts = count_pairs(changes)
    assert counts.unit * (counts.gains - counts.losses) / counts.pairs == pytest.approx(changes.mean())
    assert counts.unit**2 * (counts.gains + counts.losses) / counts.pairs == pytest.approx(
        (changes**2).mean(), rel=0.03
    )
    # a constant change has no variance
    for change, expected in ((-1.0, Verdict.PASS), (-5.0, Verdict.FAIL)):
        assert decide({"a": [count_pairs([change] * 500)]}, margins={"a": 2.0})[0] is expected


def test_pseudo_values_of_a_mean_are_the_values() -> None:
    values = numpy.array([1.0, 4.0, 4.0, 7.0])
    found = pseudo_values(lambda rows: float(values[rows].mean()), items=4, kinds=list(values))
    assert found == pytest.approx(values)


def test_repeated_measurements_count_by_the_worst() -> None:
    good, worse = pairs(1000, 5, 5), pairs(1000, 5, 25)
    verdict, tests = decide({"a": [good, worse, good]}, margins={"a": 2.0})
    assert verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert tests["a"].p_pass == p_above(worse, 2.0) and tests["a"].p_fail == p_below(good, 2.0)
    low, high = change_bounds([good, worse], margin=2.0)
    assert low == change_bounds([worse], margin=2.0)[0] and high == change_bounds([good], margin=2.0)[1]


def test_the_reported_number_of_items_decides_four_times_of_five() -> None:
    rng = numpy.random.default_rng(3)
    _, tests = decide({"a": [pairs(200, 6, 6)]}, margins={"a": 2.0})
    factor = tests["a"].factor
    assert factor is not None and factor > 1
    items = round(200 * factor)
    drawn = rng.multinomial(items, [0.03, 0.03, 0.94], size=300)[:, :2].tolist()
    decided = numpy.mean([p_above(pairs(items, *each), 2.0) <= 0.05 for each in drawn])
    assert 0.72 <= decided <= 0.92


def test_invalid_values_are_rejected() -> None:
    with pytest.raises(ValueError, match="no counts"):
        decide({"a": []}, margins={"a": 2.0})
    with pytest.raises(ValueError, match="not finite"):
        count_pairs([1.0, float("nan")])
    with pytest.raises(ValueError, match="groups for"):
        count_pairs([1.0, 2.0], groups=[1])
