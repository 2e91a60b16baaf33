"""Contain as the released code has it: a string in a string, not words among words."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import MetricInfo
from imsm.evaluation.metrics.text import normalised

INFO = MetricInfo(
    name="paper_code_contain",
    meaning="share of items whose raw text holds an accepted answer as letters (released code)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the letters of any accepted answer stand in the text.

    So "no" is found in "not", "5" in "15", and "Group A", whose article is dropped, in "Group B".
    """
    text = normalised(prediction)
    return float(any(normalised(gold) in text for gold in golds))
