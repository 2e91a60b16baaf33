"""Significance tests against libraries and simulations."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from imsm.evaluation.statistics.significance import holm, mcnemar, minimum_detectable_difference, roc_auc, student_t

RNG = numpy.random.default_rng(7)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 9), (25, 10), (7, 7)])
def test_mcnemar_equals_statsmodels(better: int, worse: int) -> None:
    one = [1] * better + [0] * worse + [1] * 5 + [0] * 4
    other = [0] * better + [1] * worse + [1] * 5 + [0] * 4
    found = mcnemar(one, other)
    assert (found.better, found.worse) == (better, worse)
    table = [[5, better], [worse, 4]]
    theirs = statsmodels_mcnemar(table, exact=True).pvalue if better + worse else 1.0
    assert found.p_value == pytest.approx(theirs)


@pytest.mark.parametrize("values", [[0.5], [0.04, 0.01, 0.02], [0.0, 1.0, 0.3, 0.3], [0.9, 0.8, 0.004, 0.02, 0.02]])
def test_holm_equals_statsmodels(values: list[float]) -> None:
    found = holm({str(index): value for index, value in enumerate(values)})
    assert list(found.values()) == list(multipletests(values, method="holm")[1])


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04: times 3, 2, 1, never below the one before
    assert holm({"b": 0.04, "a": 0.01, "c": 0.02}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.04})
    assert holm({}) == {}


def test_students_t_equals_scipys() -> None:
    one, other = [61.2, 60.1, 62.5], [59.0, 60.4, 58.8]
    found, theirs = student_t(one, other), stats.ttest_ind(one, other)
    assert found is not None
    assert (found.t, found.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert found.degrees == 4


@pytest.mark.filterwarnings("error")
def test_undefined_tests_have_no_p_value() -> None:
    assert student_t([1.0], [2.0]) is None
    level = student_t([0.1 + 0.2, 0.3], [0.1, 0.1])  # equal up to rounding
    assert level is not None and level.p_value is None
    steady = student_t([61.0, 61.0, 61.0], [59.0, 60.4, 58.8])
    assert steady is not None and steady.t == pytest.approx((61 - 59.4) / (((0.16 + 1 + 0.36) / 2 + 0) / 3) ** 0.5)
    assert minimum_detectable_difference([1.0, 1, 1], [0.0, 0, 0]) is None
    assert minimum_detectable_difference([0.3, 0.4, 0.5], [0.1, 0.2, 0.3]) is None
    assert minimum_detectable_difference([1.0, 0, 1, 0], [0.0, 0, 0, 0], groups=[1, 1, 2, 2]) is None
    assert roc_auc([0.1, 0.2], [1, 1]) is None


def test_roc_auc_of_perfect_and_constant_predictors() -> None:
    assert roc_auc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert roc_auc([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1]) == 0.5


def test_the_minimum_detectable_difference_is_found_in_four_of_five() -> None:
    rng = numpy.random.default_rng(5)
    one, other = rng.normal(size=(2, 50))
    least = minimum_detectable_difference(one, other)
    assert least is not None
    spread = float((one - other).std(ddof=1))
    drawn = rng.normal(least, spread, (2000, 50))
    found = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert numpy.mean(found) == pytest.approx(0.8, abs=0.03)


def test_repeated_answers_in_a_passage_do_not_add_power() -> None:
    one, other = RNG.normal(size=(2, 50))
    groups = [index // 4 for index in range(200)]
    repeated = minimum_detectable_difference(numpy.repeat(one, 4), numpy.repeat(other, 4), groups=groups)
    assert repeated == pytest.approx(minimum_detectable_difference(one, other))


def test_invalid_p_values_and_counts_are_rejected() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": float("nan"), "b": 0.1})
    with pytest.raises(ValueError, match="needs one each"):
        roc_auc([0.1, 0.2, 0.3], [0, 1])
