"""F1 of shared words, as defined by SQuAD."""

from collections import Counter
from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(name="token_f1", meaning="F1 of the words shared with the best-matching accepted answer")


def score(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 over the accepted answers; repeated words count repeatedly."""
    words = squad_tokens(prediction)
    return max(_overlap(words, squad_tokens(reference)) for reference in references)


def _overlap(words: list[str], wanted: list[str]) -> float:
    # As SQuAD: an answer without words equals only another one without words.
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))
