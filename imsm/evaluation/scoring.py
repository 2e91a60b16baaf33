"""Extracted answers and accepted answers to numbers: one per item and metric, one per metric."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.evaluation.metrics import aggregate, metric_module
from imsm.utils.errors import UserError


def score_predictions(
    task_metrics: Sequence[str], answers: Sequence[str], golds: Sequence[Sequence[str]]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Scores N answers by M metrics.

    Args:
        task_metrics: M names of metrics, or dotted names of their modules; the first is the
            headline.
        answers: N extracted answers.
        golds: N lists of accepted answers.

    Returns:
        {metric: value in points}, by the INFO's name and in the order of task_metrics (points are
        0 to 100; mcc -100 to 100), and N dictionaries {metric: the item's score}, where a right
        answer is 1.

    Raises:
        UserError: no such metric, two of one name, no answers, or not as many answers as lists of
            accepted ones.
    """
    modules = [metric_module(name) for name in task_metrics]
    names = [module.INFO.name for module in modules]
    if len(set(names)) < len(names):
        raise UserError(f"Two metrics have the same name: {', '.join(names)}.")
    totals = {module.INFO.name: module.INFO.scale * aggregate(module, answers, golds) for module in modules}
    items = [
        {module.INFO.name: float(module.score(answer, gold)) for module in modules}
        for answer, gold in zip(answers, golds, strict=True)
    ]
    return totals, items
