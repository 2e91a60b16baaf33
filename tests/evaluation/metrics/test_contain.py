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
        ("東京です", ["東京"], 1),
        ("東京都です", ["京都"], 1),
        ("京です", ["東京"], 0),
        ("首都是北京。", ["北京"], 1),
        (
            "\u0e40\u0e21\u0e37\u0e2d\u0e07\u0e2b\u0e25\u0e27\u0e07\u0e04\u0e37\u0e2d\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e2f",
            ["\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e"],
            1,
        ),
        ("\u0e17\u0e35\u0e48", ["\u0e17\u0e35"], 0),
        ("\u0e01\u0e34\u0e19", ["\u0e01\u0e31\u0e19"], 0),
        ("\u0915\u093e", ["\u0915\u093f"], 0),
        ("東京tower", ["tower"], 1),
        ("トーキョー", ["トキョ"], 0),
        ("15歳", ["5"], 0),
        ("15歳", ["15"], 1),
        ("", ["A"], 0),
        ("!", ["?"], 0),
    ],
)
def test_only_complete_words_match(prediction: str, references: list[str], held: int) -> None:
    assert contain.score(prediction, references) == held
