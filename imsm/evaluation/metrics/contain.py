"""Contain: does an accepted answer stand in the text, as whole words?"""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import ARTICLES, tokens_joined, tokens_split

INFO = MetricInfo(
    name="contain",
    meaning="share of items whose text holds an accepted answer as whole words",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the words of any accepted answer stand in a row in the prediction.

    Bounded by words ("5" is not in "15", "no" not in "not"), under either reading of punctuation
    ("Arvel's" holds Arvel, "US" holds U.S.). Of articles only an accepted answer's leading one is
    dropped: "The Arvel" is in "on Arvel", but "Group A" is not in "Group B".
    """
    return float(
        any(_stands_in(split(prediction), split(gold)) for gold in golds for split in (tokens_joined, tokens_split))
    )


def _stands_in(words: list[str], gold_words: list[str]) -> bool:
    if len(gold_words) > 1 and gold_words[0] in ARTICLES:
        gold_words = gold_words[1:]
    length = len(gold_words)
    starts = range(len(words) - length + 1) if length else range(0)
    return any(words[start : start + length] == gold_words for start in starts)
