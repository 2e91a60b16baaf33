"""Matthews correlation of yes/no answers."""

from collections.abc import Sequence

from imsm.evaluation.metrics.accuracy import score
from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.labels import matthews_correlation, predicted_label, reference_label

# MCC has no value per example, so an example is scored by the correctness of its label.
__all__ = ["INFO", "aggregate", "score"]

INFO = MetricInfo(
    name="mcc", meaning="Matthews correlation of predicted and correct yes/no, from -1 over 0 (chance) to 1"
)


def aggregate(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute the Matthews correlation, 0 where undefined (a constant answer).

    An unparsed answer is a third class (Gorodkin 2004). Counting it as the opposite label would give a
    model without any answer a correlation of -1.
    """
    return matthews_correlation([reference_label(r) for r in references], [predicted_label(p) for p in predictions])
