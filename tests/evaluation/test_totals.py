"""Totals that are counted here, against scikit-learn."""

from __future__ import annotations

import numpy
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from imsm.evaluation.metrics.labels import f1_score as label_f1, matthews_correlation


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_totals_are_scikit_learns(kinds: int, count: int) -> None:
    rng = numpy.random.default_rng(count)
    for _ in range(30):
        golds = [("yes", "no")[n] for n in rng.integers(2, size=count)]
        said = [("yes", "no", "unparsed")[n] for n in rng.integers(kinds, size=count)]
        f1 = f1_score(golds, said, labels=["yes"], average="micro", zero_division=0)
        assert label_f1(golds, said, label="yes") == pytest.approx(f1)
        assert matthews_correlation(golds, said) == pytest.approx(matthews_corrcoef(golds, said))


def test_undefined_totals_are_0() -> None:
    assert label_f1(["no", "no"], ["no", "no"], label="yes") == 0
    assert matthews_correlation(["yes", "no"], ["yes", "yes"]) == 0
    assert matthews_correlation(["yes", "yes"], ["yes", "no"]) == 0
