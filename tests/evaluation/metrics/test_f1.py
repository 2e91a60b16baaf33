"""F1 by example."""

from __future__ import annotations

from imsm.evaluation.metrics import aggregate, f1


def test_unparsed_answers_are_misses_and_not_false_positives() -> None:
    references = [["yes"], ["yes"], ["no"]]
    assert aggregate(f1, ["yes", "", "no"], references) == aggregate(f1, ["yes", "no", ""], references) == 2 / 3
    assert f1.score("yes", ["yes"]) == 1 and f1.score("", ["no"]) == 0
