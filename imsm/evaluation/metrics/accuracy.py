"""Accuracy of yes/no answers."""

from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.labels import predicted_label, reference_label

INFO = MetricInfo(name="accuracy", meaning="fraction of examples whose first word is the correct one of yes and no")


def score(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the label is correct; an answer that is neither yes nor no is wrong."""
    return float(predicted_label(prediction) == reference_label(references))
