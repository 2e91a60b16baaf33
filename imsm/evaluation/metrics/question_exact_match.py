"""Exact match of questions: whether all yes/no answers to a question are correct (MultiRC, Khashabi et al. 2018)."""

from collections.abc import Sequence

from imsm.evaluation.metrics.accuracy import score
from imsm.evaluation.metrics.base import MetricInfo

# An example alone is scored by its own answer.
__all__ = ["INFO", "aggregate_groups", "score"]

INFO = MetricInfo(name="question_exact_match", meaning="fraction of questions all of whose yes/no answers are correct")


def aggregate_groups(predictions: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str]) -> float:
    """Compute the fraction of groups in which every example is correct."""
    correct: dict[str, bool] = {}
    for prediction, accepted, group in zip(predictions, references, groups, strict=True):
        correct[group] = correct.get(group, True) and score(prediction, accepted) == 1
    return sum(correct.values()) / len(correct)
