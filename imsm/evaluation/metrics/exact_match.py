"""Exact match, as SQuAD defines it."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import squad_tokens

INFO = MetricInfo(
    name="exact_match",
    meaning="share of items whose answer equals an accepted one (case, articles, marks aside)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction's words are those of any accepted answer."""
    words = squad_tokens(prediction)
    return float(any(words == squad_tokens(gold) for gold in golds))
