"""Exact match, as defined by SQuAD."""

from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(
    name="exact_match",
    meaning="fraction of examples whose answer equals an accepted one (ignoring case, articles, punctuation)",
)


def score(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the normalized words equal those of an accepted answer."""
    words = squad_tokens(prediction)
    return float(any(words == squad_tokens(reference) for reference in references))
