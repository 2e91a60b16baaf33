"""Exact match as the released code has it: of the whole raw text, whatever follows the answer."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import normalised

INFO = MetricInfo(
    name="paper_code_exact_match",
    meaning="share of items whose whole raw text equals an accepted answer (released code)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the raw text, all its lines, is an accepted answer (case, articles, marks aside)."""
    return float(normalised(prediction) in [normalised(gold) for gold in golds])
