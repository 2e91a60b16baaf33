"""Scoring predictions: points per metric and scores per example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import load
from imsm.evaluation.scoring import score_predictions
from imsm.utils.errors import UserError


def test_totals_are_in_points_and_scores_per_example() -> None:
    predictions, references = ["yes", "no", ""], [["yes"], ["yes"], ["no"]]
    totals, scores = score_predictions(["accuracy", "f1"], predictions, references)
    assert list(totals) == ["accuracy", "f1"]
    assert totals == {"accuracy": pytest.approx(100 / 3), "f1": pytest.approx(200 / 3)}
    assert scores == [{"accuracy": value, "f1": value} for value in (1.0, 0.0, 0.0)]


@pytest.mark.parametrize("name", ["accuracy", "f1", "mcc", "exact_match", "token_f1", "contain"])
def test_totals_equal_the_hf_metric(name: str) -> None:
    predictions, references = ["yes", "no way", "No", "yes"], [["yes"], ["no"], ["yes"], ["no"]]
    totals, _ = score_predictions([name], predictions, references)
    alone = load(name).compute(predictions=predictions, references=references)
    assert alone is not None
    assert totals[name] == pytest.approx(100 * alone[name])


def test_unequal_counts_are_rejected() -> None:
    with pytest.raises(UserError, match="got 1 predictions and 2 lists"):
        score_predictions(["contain"], ["a"], [["a"], ["b"]])


def test_two_metrics_of_one_name_are_rejected() -> None:
    with pytest.raises(UserError, match="two metrics have the same name"):
        score_predictions(["f1", "imsm.evaluation.metrics.f1"], ["yes"], [["yes"]])
