"""F1 of the label yes."""

from collections.abc import Sequence

from imsm.evaluation.metrics.accuracy import score
from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.labels import f1_score, predicted_label, reference_label

# F1 has no value per example, so an example is scored by the correctness of its label.
__all__ = ["INFO", "aggregate", "score"]

INFO = MetricInfo(name="f1", meaning="harmonic mean of precision and recall of the label yes")


def aggregate(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute the F1 of yes, 0 where undefined; an unparsed answer to a yes is a miss."""
    return f1_score([reference_label(r) for r in references], [predicted_label(p) for p in predictions], label="yes")
