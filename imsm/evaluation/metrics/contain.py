"""Contain: whether the text contains an accepted answer, word by word."""

from collections.abc import Sequence

from imsm.evaluation.metrics.base import MetricInfo
from imsm.evaluation.metrics.text import ARTICLES, separate_unspaced, tokens_joined, tokens_split

INFO = MetricInfo(
    name="contain", meaning="fraction of examples whose text contains all words of an accepted answer in sequence"
)


def score(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the words of an accepted answer are consecutive words of the prediction.

    Only complete words match ("5" is not in "15"), under either treatment of punctuation ("Arvel's"
    contains Arvel, "US" contains U.S.). Only an accepted answer's leading article is dropped: "The
    Arvel" is in "on Arvel", but "Group A" is not in "Group B". In scripts that write no spaces between
    words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word: "東京です" contains 東京.
    """
    prediction, references = separate_unspaced(prediction), [separate_unspaced(text) for text in references]
    return float(
        any(
            _contains(split(prediction), split(reference))
            for reference in references
            for split in (tokens_joined, tokens_split)
        )
    )


def _contains(words: list[str], wanted: list[str]) -> bool:
    if len(wanted) > 1 and wanted[0] in ARTICLES:
        wanted = wanted[1:]
    length = len(wanted)
    # An accepted answer without words would be contained in every text.
    starts = range(len(words) - length + 1) if length else range(0)
    return any(words[start : start + length] == wanted for start in starts)
