"""Exact match of questions by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import aggregate, question_exact_match
from imsm.evaluation.scoring import score_predictions
from imsm.utils.errors import UserError

PREDICTIONS = ["yes", "no", "no", "yes", ""]
REFERENCES = [["yes"], ["no"], ["yes"], ["yes"], ["no"]]
GROUPS = ["a", "a", "b", "b", "c"]


def test_a_question_is_right_if_all_its_answers_are() -> None:
    assert aggregate(question_exact_match, PREDICTIONS, REFERENCES, GROUPS) == pytest.approx(1 / 3)
    # not the order, and not the number of answers to a question
    mixed = [2, 0, 4, 1, 3]
    columns = [[column[index] for index in mixed] for column in (PREDICTIONS, REFERENCES, GROUPS)]
    assert aggregate(question_exact_match, *columns) == pytest.approx(1 / 3)


def test_it_is_computed_next_to_the_first_metric_only() -> None:
    totals, scores = score_predictions(["accuracy", "question_exact_match"], PREDICTIONS, REFERENCES, GROUPS)
    assert totals == {"accuracy": pytest.approx(60), "question_exact_match": pytest.approx(100 / 3)}
    assert [row["question_exact_match"] for row in scores] == [1, 1, 0, 1, 0]
    with pytest.raises(UserError, match="question_exact_match"):
        score_predictions(["question_exact_match"], PREDICTIONS, REFERENCES, GROUPS)
