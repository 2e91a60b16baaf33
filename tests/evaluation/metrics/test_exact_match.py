"""Exact match by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import exact_match


@pytest.mark.parametrize(
    ("prediction", "references", "right"),
    [
        ("the Arvel", ["Arvel"], 1),
        ("Arvel.", ["arvel"], 1),
        ("2125", ["2,125"], 1),
        ("1.5", ["15"], 0),
        ("1.5", ["1.5"], 1),
        ("15.", ["15"], 1),
        ("Group B", ["Group A"], 0),
        ("", ["A"], 0),
        ("A", ["A"], 1),
        ("Lowmere", ["Port Senn", "Lowmere"], 1),
        ("Port Senn and Lowmere", ["Port Senn", "Lowmere"], 0),
    ],
)
def test_equality_ignores_case_articles_and_punctuation(prediction: str, references: list[str], right: int) -> None:
    assert exact_match.score(prediction, references) == right
