"""The interface of a metric, and its value over a set of examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from imsm.utils.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """Description of a metric; ``scale`` is the factor from its value to points."""

    name: str
    meaning: str
    higher_is_better: bool = True
    scale: float = 100.0


class MetricModule(Protocol):
    """What every metric offers; `aggregate(predictions, references)` is optional."""

    INFO: MetricInfo

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score one prediction against its accepted answers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as an object, for modules that define several."""

    INFO: MetricInfo
    score: Callable[[str, Sequence[str]], float]
    aggregate: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None


def is_mean_of_scores(metric: MetricModule) -> bool:
    """Return whether the metric's value is the mean of its scores, unlike F1 and correlations."""
    # A Protocol cannot declare an optional member.
    return getattr(metric, "aggregate", None) is None


def aggregate(metric: MetricModule, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute the metric over all examples: its own `aggregate` if it has one, else the mean score.

    Raises:
        UserError: No examples, or unequal numbers of predictions and references.
    """
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"{metric.INFO.name}: got {len(predictions)} predictions and {len(references)} lists of references; "
            "give at least one prediction and one list for each"
        )
    if not is_mean_of_scores(metric):
        return float(metric.aggregate(predictions, references))  # type: ignore[attr-defined]
    scores = [metric.score(*pair) for pair in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)
