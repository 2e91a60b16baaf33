"""Token F1 by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import token_f1


def test_the_best_overlap_counts() -> None:
    assert token_f1.score("the old port", ["Old Port Senn"]) == pytest.approx(0.8)
    assert token_f1.score("port port", ["port"]) == pytest.approx(2 / 3)
    assert token_f1.score("Lowmere", ["Port Senn", "Lowmere town"]) == pytest.approx(2 / 3)
    assert token_f1.score("1.5", ["15"]) == 0.0
    assert token_f1.score("", ["port"]) == 0.0
