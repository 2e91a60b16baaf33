"""Metrics: one small module each, usable by the run and on their own.

A metric's module offers

    INFO = Info(name=, meaning=, higher_is_better=, scale=)
    score(prediction, golds) -> float             one item; a right answer is 1
    aggregate(predictions, golds) -> float        optional; the mean of score by default

`load("contain")` makes an `evaluate.Metric` of one; a module of one's own goes by its dotted name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from imsm.evaluation.metrics.base import MetricInfo, MetricModule, aggregate
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from imsm.evaluation.metrics.hf_metric import HFTextMetric

__all__ = ["MetricInfo", "MetricModule", "aggregate", "load", "metric_module"]


def load(name: str) -> HFTextMetric:
    """The metric as an `evaluate.Metric`; works in memory and writes no file.

    `load("mcc").compute(predictions=["yes"], references=[["yes"]])` gives {"mcc": value}; a
    reference is the list of an item's accepted answers. The value is not yet times INFO.scale.

    Args:
        name: a metric of imsm, or the dotted name of a metric's module.

    Raises:
        UserError: no such metric, or a module without INFO and score.
    """
    module = metric_module(name)
    from imsm.evaluation.metrics.hf_metric import HFTextMetric  # evaluate takes seconds to import

    return HFTextMetric(module)


def metric_module(name: str) -> MetricModule:
    """Imports a metric's module.

    Args:
        name: a metric of imsm, or the dotted name of a metric's module.

    Raises:
        UserError: no such metric, or a module without INFO and score.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    dotted = f"{__name__}.{name}" if name in known else name
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        near = closest_match(name, known)
        hint = f" Did you mean {near}?" if near else ""
        raise UserError(
            f"There is no metric {name!r} ({error}).{hint} There are {', '.join(known)}; "
            "one of your own goes by the dotted name of its module."
        ) from error
    lacking = [part for part in ("INFO", "score") if not hasattr(module, part)]
    if lacking:
        raise UserError(
            f"The module {dotted} is no metric: it lacks {' and '.join(lacking)}. A metric has "
            "INFO = Info(...) and score(prediction, golds) -> float."
        )
    return cast(MetricModule, module)
