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
    """What every metric offers; `aggregate` and `aggregate_groups` are optional."""

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
    return getattr(metric, "aggregate", None) is None and not reads_groups(metric)


def reads_groups(metric: MetricModule) -> bool:
    """Return whether the metric's value depends on which examples form a group."""
    return getattr(metric, "aggregate_groups", None) is not None


def aggregate(
    metric: MetricModule,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[str] | None = None,
) -> float:
    """Compute the metric over all examples: its own `aggregate` if it has one, else the mean score.

    ``groups`` are the examples' groups, read by metrics of groups only.

    Raises:
        UserError: No examples, unequal numbers of predictions and references, or a metric of groups without groups.
    """
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"{metric.INFO.name}: got {len(predictions)} predictions and {len(references)} lists of references; "
            "give at least one prediction and one list for each"
        )
    if reads_groups(metric):
        if groups is None:
            raise UserError(
                f"data.metric={metric.INFO.name}: is computed from groups of examples; use it after another metric, "
                "e.g. data.metric=[accuracy,question_exact_match]"
            )
        return float(metric.aggregate_groups(predictions, references, groups))  # type: ignore[attr-defined]
    if not is_mean_of_scores(metric):
        return float(metric.aggregate(predictions, references))  # type: ignore[attr-defined]
    scores = [metric.score(*pair) for pair in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)
