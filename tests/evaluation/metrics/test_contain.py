"""Contain by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import contain


@pytest.mark.parametrize(
    ("prediction", "references", "held"),
    [
        ("It is Port Senn, I think", ["port senn"], 1),
        ("It is Port of Senn", ["port senn"], 0),
        ("there are 15", ["5"], 0),
        ("there are 5.", ["5"], 1),
        ("1.5 litres", ["5"], 0),
        ("1.5 litres", ["15"], 0),
        ("1.5 litres", ["1.5"], 1),
        ("in 2,125 cases", ["2125"], 1),
        ("in 2125 cases", ["2,125"], 1),
        ("in 2,125 cases", ["125"], 0),
        ("I do not know", ["no"], 0),
        ("no, I do not", ["no"], 1),
        ("Group B", ["Group A"], 0),
        ("it was Group A.", ["Group A"], 1),
        ("Group A grows", ["Group A"], 1),
        ("Sample B, a good one", ["Sample A"], 0),
        ("Arvel", ["The Arvel"], 1),
        ("the Arvel's mouth", ["Arvel"], 1),
        ("a Lowmere-born man", ["Lowmere"], 1),
        ("the US army", ["U.S."], 1),
        ("the U.S. army", ["US"], 1),
        ("\u201cLowmere\u201d", ["Lowmere"], 1),
        ("Lowmere", ["Port Senn", "Lowmere"], 1),
        ("answer A", ["A"], 1),
        ("", ["A"], 0),
        ("!", ["?"], 0),
    ],
)
def test_only_complete_words_match(prediction: str, references: list[str], held: int) -> None:
    assert contain.score(prediction, references) == held
