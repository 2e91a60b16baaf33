"""Accuracy of yes/no answers."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.labels import gold_label, predicted_label

INFO = MetricInfo(
    name="accuracy",
    meaning="share of items whose first word is the right one of yes and no",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the first word is the gold's; an answer that is neither yes nor no is wrong."""
    return float(predicted_label(prediction) == gold_label(golds))
