"""Metrics of yes/no answers against scikit-learn and worked examples."""

from __future__ import annotations

import math
import random

import numpy
import pytest
import sklearn.metrics
from sklearn.metrics import accuracy_score, matthews_corrcoef

from imsm.evaluation.metrics import aggregate, resolve_metric
from imsm.evaluation.metrics.labels import f1_score, matthews_correlation
from imsm.utils.errors import UserError


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_f1_and_correlation_equal_scikit_learn(kinds: int, count: int) -> None:
    rng = numpy.random.default_rng(count)
    for _ in range(30):
        references = [("yes", "no")[n] for n in rng.integers(2, size=count)]
        predicted = [("yes", "no", "unparsed")[n] for n in rng.integers(kinds, size=count)]
        f1 = sklearn.metrics.f1_score(references, predicted, labels=["yes"], average="micro", zero_division=0)
        assert f1_score(references, predicted, label="yes") == pytest.approx(f1)
        assert matthews_correlation(references, predicted) == pytest.approx(
            sklearn.metrics.matthews_corrcoef(references, predicted)
        )


def test_undefined_values_are_0() -> None:
    assert f1_score(["no", "no"], ["no", "no"], label="yes") == 0
    assert matthews_correlation(["yes", "no"], ["yes", "yes"]) == 0
    assert matthews_correlation(["yes", "yes"], ["yes", "no"]) == 0


def labels(count: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    return draw.choices(["yes", "no"], k=count), draw.choices(["yes", "no"], [3, 1], k=count)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_f1_and_mcc_equal_scikit_learn(seed: int) -> None:
    predicted, right = labels(60, seed)
    references = [[label] for label in right]
    wordings = {"yes": ["Yes.", "yes", " YES, they do"], "no": ["no", "No!", "no, not at all"]}
    worded = [wordings[label][number % 3] for number, label in enumerate(predicted)]
    assert aggregate(resolve_metric("accuracy"), worded, references) == pytest.approx(accuracy_score(right, predicted))
    assert aggregate(resolve_metric("f1"), worded, references) == pytest.approx(
        sklearn.metrics.f1_score(right, predicted, pos_label="yes")
    )
    assert aggregate(resolve_metric("mcc"), worded, references) == pytest.approx(matthews_corrcoef(right, predicted))


def test_mcc_and_f1_by_hand() -> None:
    predicted = ["yes"] * 6 + ["no"] * 4
    references = [["yes"]] * 4 + [["no"]] * 2 + [["no"]] * 3 + [["yes"]]
    true_yes, false_yes, true_no, false_no = 4, 2, 3, 1
    mcc = (true_yes * true_no - false_yes * false_no) / math.sqrt(6 * 5 * 5 * 4)
    assert aggregate(resolve_metric("mcc"), predicted, references) == pytest.approx(mcc)
    f1 = 2 * true_yes / (2 * true_yes + false_yes + false_no)
    assert aggregate(resolve_metric("f1"), predicted, references) == pytest.approx(f1)
    assert aggregate(resolve_metric("accuracy"), predicted, references) == pytest.approx(0.7)


@pytest.mark.parametrize("unparsed", ["", "maybe", "not at all", "I know, yes", "yesterday"])
def test_an_unparsed_answer_is_always_wrong(unparsed: str) -> None:
    for gold in ("yes", "no"):
        for name in ("accuracy", "f1", "mcc"):
            assert resolve_metric(name).score(unparsed, [gold]) == 0.0
    references = [["yes"], ["yes"], ["no"], ["no"]]
    right = ["yes", "yes", "no", "no"]
    assert aggregate(resolve_metric("accuracy"), [unparsed, *right[1:]], references) == 0.75
    assert aggregate(resolve_metric("f1"), [unparsed, *right[1:]], references) == pytest.approx(2 / 3)
    assert 0 < aggregate(resolve_metric("mcc"), [unparsed, *right[1:]], references) < 1
    for name in ("accuracy", "f1", "mcc"):
        assert aggregate(resolve_metric(name), [unparsed] * 4, references) == 0.0


def test_a_constant_answer_scores_0() -> None:
    assert aggregate(resolve_metric("mcc"), ["yes"] * 3, [["yes"], ["no"], ["yes"]]) == 0.0
    assert aggregate(resolve_metric("f1"), ["no"] * 2, [["no"], ["no"]]) == 0.0


def test_other_references_are_rejected() -> None:
    for name in ("accuracy", "f1", "mcc"):
        with pytest.raises(UserError, match=r"reference='a town': .*data\.metric="):
            aggregate(resolve_metric(name), ["yes"], [["a town"]])
