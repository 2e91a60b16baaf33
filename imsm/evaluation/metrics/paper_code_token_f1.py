"""Word overlap as the released code has it: of sets, a word counts once however often it stands."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import normalised

INFO = MetricInfo(
    name="paper_code_token_f1",
    meaning="F1 of the sets of words of the raw text and the accepted answer (released code)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """The best F1 of sets over the accepted answers; 0 where no word is shared."""
    words = set(normalised(prediction).split())
    return max(_overlap(words, set(normalised(gold).split())) for gold in golds)


def _overlap(words: set[str], gold_words: set[str]) -> float:
    shared = len(words & gold_words)
    return 2 * shared / (len(words) + len(gold_words)) if shared else 0.0
