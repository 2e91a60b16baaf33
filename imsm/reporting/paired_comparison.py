"""Paired comparison of two runs on the same examples: intervals, tests, retention.

All numbers are in points (0 to 100) unless noted otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import pandas

from imsm.evaluation.metrics import MetricModule, aggregate, is_mean_of_scores, resolve_metric
from imsm.evaluation.statistics.bootstrap import standard_error
from imsm.evaluation.statistics.forgetting import OutcomeTransitions, chance_level, outcomes, retention, transitions
from imsm.evaluation.statistics.intervals import (
    Interval,
    bootstrap_statistic_ci,
    mean_ci,
    paired_difference,
    proportion_ci,
)
from imsm.evaluation.statistics.significance import McNemar, holm, mcnemar, minimum_detectable_difference
from imsm.reporting.runs import ComparedRun

CORRECT = 0.5
"""A score from this value on counts as correct where correct answers are counted."""


@dataclass(kw_only=True)
class PairedComparison:
    """A run and its reference (by label) on a task's headline metric."""

    task: str
    metric: str
    run: str
    reference: str
    trained_on: bool  # whether a compared run was trained on this forgetting test
    difference: Interval  # run minus reference
    test: McNemar | None  # mcNemar's test; None unless every score is 0 or 1
    holm_p_value: float | None  # the test's p-value, adjusted over the report; None if ``trained_on``
    minimum_detectable: float | None  # difference that this number of examples detects with a power of 80 %


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How a run's correct answers changed from the original's.

    ``retained`` is in percent, corrected for the chance level; None where it is undefined.
    """

    task: str
    run: str
    counts: OutcomeTransitions
    chance: float
    retained: float | None


def score_interval(run: ComparedRun, task: str, metric: str) -> Interval | None:
    """Return a run's score with its 95 % interval (Wilson's if all scores are 0 or 1), or None."""
    predictions = run.predictions(task)
    if predictions is None or f"score.{metric}" not in predictions:
        return None
    groups = _groups(predictions)
    statistic = aggregate_statistic(run, task, metric, predictions)
    scores = _scores(predictions, metric)
    if statistic is not None:
        return bootstrap_statistic_ci(statistic, None, items=len(predictions), groups=groups)
    # a bootstrap of equal scores has zero width, which would claim certainty
    if set(scores) in ({0.0}, {1.0}):
        share = proportion_ci(scores, groups=groups)
        return replace(share, low=100 * share.low, estimate=100 * share.estimate, high=100 * share.high)
    return mean_ci(100 * scores, groups=groups)


def compare_runs(
    run: ComparedRun, reference: ComparedRun, *, task: str, metric: str, trained_on: bool = False
) -> PairedComparison | None:
    """Compare two runs; None if predictions are missing or of other examples."""
    pair = _pair(run, reference, task, metric)
    if pair is None:
        return None
    one, other = (_scores(predictions, metric) for predictions in pair)
    groups = _groups(pair[0])
    statistic = aggregate_statistic(run, task, metric, pair[0])
    if statistic is None:
        difference = paired_difference(100 * one, 100 * other, groups=groups)
    else:
        reference_statistic = aggregate_statistic(reference, task, metric, pair[1])
        difference = bootstrap_statistic_ci(statistic, reference_statistic, items=len(one), groups=groups)
    # McNemar's test counts correct and wrong answers; a fractional score is neither
    binary = set(numpy.unique(numpy.concatenate([one, other]))) <= {0.0, 1.0}
    return PairedComparison(
        task=task,
        metric=metric,
        run=run.label,
        reference=reference.label,
        trained_on=trained_on,
        difference=difference,
        test=mcnemar(one, other) if binary else None,
        holm_p_value=None,
        minimum_detectable=minimum_detectable_difference(100 * one, 100 * other, groups=groups),
    )


def adjust_p_values(comparisons: Sequence[PairedComparison]) -> None:
    """Set Holm's p-values over all tests that are not ``trained_on``."""
    family = {
        str(index): comparison.test.p_value
        for index, comparison in enumerate(comparisons)
        if comparison.test is not None and not comparison.trained_on
    }
    for index, value in holm(family).items():
        comparisons[int(index)].holm_p_value = value


def compute_retention(run: ComparedRun, original: ComparedRun, *, task: str, metric: str) -> Retention | None:
    """Compare correct answers with the original's; None without predictions."""
    pair = _pair(run, original, task, metric)
    if pair is None:
        return None
    after, before = (_scores(predictions, metric) for predictions in pair)
    chance = chance_level(list(pair[1]["references"]))
    error, _ = standard_error(before, _groups(pair[1]))
    return Retention(
        task=task,
        run=run.label,
        counts=transitions(before >= CORRECT, after >= CORRECT),
        chance=chance,
        retained=retention(
            100 * float(after.mean()),
            100 * float(before.mean()),
            chance=chance,
            items=len(before),
            error=100 * error if error else None,
        ),
    )


def outcomes_by_example(run: ComparedRun, original: ComparedRun, *, task: str, metric: str) -> pandas.Series | None:
    """Return each example's outcome by its id, as counted by `compute_retention`; None without predictions.

    The outcomes are those of `imsm.evaluation.statistics.forgetting.outcomes`, in the order of the run's predictions.
    """
    pair = _pair(run, original, task, metric)
    if pair is None:
        return None
    after, before = (_scores(predictions, metric) >= CORRECT for predictions in pair)
    return pandas.Series(outcomes(before, after), index=pair[0].index)


def _pair(
    one: ComparedRun, other: ComparedRun, task: str, metric: str
) -> tuple[pandas.DataFrame, pandas.DataFrame] | None:
    """Return both runs' predictions in one order; None if the examples differ."""
    first, second = one.predictions(task), other.predictions(task)
    if first is None or second is None or set(first.index) != set(second.index) or first.empty:
        return None
    if f"score.{metric}" not in first or f"score.{metric}" not in second:
        return None
    # files may list the examples in another order
    return first, second.loc[first.index]


def _scores(predictions: pandas.DataFrame, metric: str) -> numpy.ndarray:
    return predictions[f"score.{metric}"].to_numpy(float)


def _groups(predictions: pandas.DataFrame) -> list[Any]:
    # an example without a passage is a cluster by itself
    return [group or name for name, group in zip(predictions.index, predictions["group"], strict=True)]


def metric_module(run: ComparedRun, metric: str) -> MetricModule:
    """Return the module of a run's metric."""
    return resolve_metric(run.result["config"].get("metrics", {}).get(metric, metric))


def scored_texts(run: ComparedRun, task: str, metric: str, predictions: pandas.DataFrame) -> list[str]:
    """Return the texts that a metric scores."""
    paper_code = run.task_result(task).get("protocols", {}).get("paper_code", {}).get("metrics", {})
    # the published code scores the response, the strict protocol the answer extracted from it
    return list(predictions["response" if metric in paper_code else "answer"])


def aggregate_statistic(
    run: ComparedRun, task: str, metric: str, predictions: pandas.DataFrame
) -> Callable[[numpy.ndarray], float] | None:
    """Return the metric as a function of row indices; None for a mean of scores."""
    module = metric_module(run, metric)
    if is_mean_of_scores(module):
        return None
    texts = scored_texts(run, task, metric, predictions)
    references = list(predictions["references"])

    def statistic(indices: numpy.ndarray) -> float:
        chosen = [texts[index] for index in indices]
        return module.INFO.scale * aggregate(module, chosen, [references[index] for index in indices])

    return statistic
