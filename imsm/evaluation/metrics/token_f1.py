"""Word overlap (F1), as SQuAD defines it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(
    name="token_f1",
    meaning="F1 of the words shared with the accepted answer that fits best",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """The best F1 over the accepted answers; words count as often as they stand there."""
    words = squad_tokens(prediction)
    return max(_overlap(words, squad_tokens(gold)) for gold in golds)


def _overlap(words: list[str], gold_words: list[str]) -> float:
    if not words or not gold_words:
        return float(words == gold_words)
    shared = (Counter(words) & Counter(gold_words)).total()
    return 2 * shared / (len(words) + len(gold_words))
