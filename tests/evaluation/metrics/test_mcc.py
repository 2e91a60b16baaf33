"""Matthews correlation by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import aggregate, mcc


def test_unparsed_answers_are_a_third_class() -> None:
    references = [["yes"], ["no"], ["yes"], ["no"]]
    assert aggregate(mcc, ["yes", "no", "yes", "no"], references) == pytest.approx(1)
    assert aggregate(mcc, ["no", "yes", "no", "yes"], references) == pytest.approx(-1)
    assert aggregate(mcc, ["", "", "", ""], references) == 0
    assert 0 < aggregate(mcc, ["yes", "no", "", ""], references) < 1
