"""F1 of the answer yes."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.labels import f1_of, gold_label, predicted_label

INFO = MetricInfo(
    name="f1", meaning="harmonic mean of precision and recall of the answer yes", higher_is_better=True, scale=100.0
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the answer is right: F1 itself exists only over a set of items."""
    return float(predicted_label(prediction) == gold_label(golds))


def aggregate(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """F1 of yes, 0 where it is undefined; an unparsed answer to a yes is a miss."""
    return f1_of(
        [gold_label(gold) for gold in golds], [predicted_label(prediction) for prediction in predictions], label="yes"
    )
