"""Matthews' correlation of yes/no answers."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.labels import correlation_of, gold_label, predicted_label

INFO = MetricInfo(
    name="mcc",
    meaning="Matthews' correlation of predicted and right yes/no, from -1 over 0 (chance) to 1",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the answer is right: the correlation itself exists only over a set of items."""
    return float(predicted_label(prediction) == gold_label(golds))


def aggregate(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Matthews' correlation, 0 where it is undefined (one answer to everything).

    An unparsed answer is a class of its own (the correlation of Gorodkin 2004 for more than two):
    always wrong, but no evidence for the opposite, which a model that says nothing would get
    -1 for.
    """
    return correlation_of(
        [gold_label(gold) for gold in golds], [predicted_label(prediction) for prediction in predictions]
    )
