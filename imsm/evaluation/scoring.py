"""Score predictions: one value per example and metric, and one per metric."""

from collections.abc import Sequence

from imsm.evaluation.metrics import aggregate, resolve_metric
from imsm.utils.errors import UserError


def score_predictions(
    metric_names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[str] | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Score N predictions with metrics, given by name or by the dotted name of a module.

    ``groups`` are the examples' groups, for metrics of groups; none of these can be the first metric, whose
    statistics resample examples.

    Returns:
        {metric: value in points} in the order of ``metric_names``, and N dictionaries {metric: score}
        with scores from 0 to 1.

    Raises:
        UserError: Unknown metric, two metrics with one name, a first metric of groups, no predictions, or
            unequal counts.
    """
    metrics = [resolve_metric(name) for name in metric_names]
    names = [metric.INFO.name for metric in metrics]
    if len(set(names)) < len(names):
        raise UserError(f"data.metric={','.join(names)}: two metrics have the same name; remove one")
    totals = {
        metric.INFO.name: metric.INFO.scale * aggregate(metric, predictions, references, groups if position else None)
        for position, metric in enumerate(metrics)
    }
    scores = [
        {metric.INFO.name: float(metric.score(prediction, accepted)) for metric in metrics}
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return totals, scores
