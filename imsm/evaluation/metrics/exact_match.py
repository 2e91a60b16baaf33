"""Exact match, as in SQuAD's script but for decimal points and articles."""

from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(
    name="exact_match",
    meaning="fraction of examples whose answer equals an accepted one (ignoring case, articles, punctuation)",
)


def score(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the normalized words equal those of an accepted answer.

    Equal to SQuAD's script, except that a decimal point is kept (there 1.5 equals 15) and that an answer
    of nothing but articles equals only itself (there "A" equals "the" and an empty answer). As there, two
    answers without words, e.g. of punctuation only, are equal, and words are separated by spaces.
    """
    words = squad_tokens(prediction)
    return float(any(words == squad_tokens(reference) for reference in references))
