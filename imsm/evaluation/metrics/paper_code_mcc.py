"""Matthews' correlation as the released code has it: "yes" anywhere is yes, all else is no."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.labels import correlation_of
from imsm.evaluation.metrics.text import says_yes

INFO = MetricInfo(
    name="paper_code_mcc",
    meaning="Matthews' correlation where any text without the letters yes is a no (released code)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if both say yes or neither does: the correlation exists only over a set of items."""
    return float(says_yes(prediction) == says_yes(golds[0]))


def aggregate(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Matthews' correlation, 0 where it is undefined (one answer to everything)."""
    said = [says_yes(prediction) for prediction in predictions]
    return correlation_of([says_yes(gold[0]) for gold in golds], said)
