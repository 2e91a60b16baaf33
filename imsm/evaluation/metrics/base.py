"""What a metric's module is to the rest, and its one number over all items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imsm.utils.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What a table needs to know about a metric."""

    name: str
    meaning: str
    higher_is_better: bool
    scale: float
    """The metric's value times this is what tables show (points)."""


class MetricModule(Protocol):
    """The part of a metric's module that every one has."""

    INFO: MetricInfo

    def score(self, prediction: str, golds: Sequence[str]) -> float:
        """One prediction against its accepted answers."""
        ...


def aggregate(module: MetricModule, predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """One number over all items: the module's own aggregate, else the mean of its score.

    Raises:
        UserError: no items, or not as many predictions as lists of answers.
    """
    if not predictions or len(predictions) != len(golds):
        raise UserError(
            f"{module.INFO.name} needs at least one prediction and a list of accepted answers for "
            f"each; there are {len(predictions)} predictions and {len(golds)} lists."
        )
    own = getattr(module, "aggregate", None)
    if own is not None:
        return float(own(predictions, golds))
    scores = [module.score(prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]
    return sum(scores) / len(scores)
