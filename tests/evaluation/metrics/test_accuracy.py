"""Accuracy by example."""

from __future__ import annotations

from imsm.evaluation.metrics import accuracy, aggregate


def test_the_first_word_decides() -> None:
    assert accuracy.score("Yes, they do", ["yes"]) == 1
    assert accuracy.score("They do, yes", ["yes"]) == 0
    assert aggregate(accuracy, ["no", "yes", "", "no."], [["no"]] * 4) == 0.5
