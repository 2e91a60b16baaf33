"""F1 of shared words, as in SQuAD's script but for decimal points and articles."""

from collections import Counter
from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(name="token_f1", meaning="F1 of the words shared with the best-matching accepted answer")


def score(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 over the accepted answers; repeated words count repeatedly.

    Equal to the script of SQuAD 2.0, except that a decimal point is kept (there 1.5 equals 15) and that an
    answer of nothing but articles equals only itself (there "A" equals "the" and an empty answer). As
    there, two answers without words score 1, one without words against one with words 0; the script of
    SQuAD 1.1 gives 0 to both.
    """
    words = squad_tokens(prediction)
    return max(_overlap(words, squad_tokens(reference)) for reference in references)


def _overlap(words: list[str], wanted: list[str]) -> float:
    # As SQuAD 2.0: an answer without words equals only another one without words.
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))
