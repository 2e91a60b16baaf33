"""Metrics: one module per metric, usable in a run and on their own.

A metric module defines

    INFO = MetricInfo(name=, meaning=, higher_is_better=, scale=)
    score(prediction, references) -> float            one example; a correct answer scores 1
    aggregate(predictions, references) -> float       optional; by default the mean of the scores
    aggregate_groups(predictions, references, groups) -> float
                                                      in its place, for a metric of groups of examples; such a metric
                                                      is computed next to a task's first metric

and `conf/metric/<name>.yaml` names it. `load("contain")` returns it as an `evaluate.Metric`; a custom
metric is given as the dotted name of its module.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, cast

from imsm.evaluation.metrics.base import Metric, MetricInfo, MetricModule, aggregate, is_mean_of_scores
from imsm.utils.errors import UserError
from imsm.utils.options import closest_match, list_options, load_option
from imsm.utils.trust import METRICS, check_trusted

if TYPE_CHECKING:
    from imsm.evaluation.metrics.hf_metric import HFTextMetric

__all__ = ["Metric", "MetricInfo", "MetricModule", "aggregate", "is_mean_of_scores", "load", "resolve_metric"]


def load(name: str) -> HFTextMetric:
    """Return the metric as an `evaluate.Metric` that works in memory.

    `load("mcc").compute(predictions=["yes"], references=[["yes"]])` returns {"mcc": value}; each
    reference is the list of an example's accepted answers. The value is not multiplied by INFO.scale.
    ``name`` and errors are those of `resolve_metric`.
    """
    from imsm.evaluation.metrics.hf_metric import HFTextMetric  # importing `evaluate` takes seconds

    return HFTextMetric(resolve_metric(name))


def resolve_metric(name: str) -> MetricModule:
    """Import a metric by its name in `conf/metric`, or the dotted name of a trusted module or an object in one.

    Raises:
        UserError: Unknown or untrusted metric, or INFO or score is missing.
    """
    names = list_options("metric")
    path = str(load_option("metric", name)["module"]) if name in names else name
    match = closest_match(name, names)
    hint = f"; did you mean {match}?" if match else ""
    try:
        check_trusted(path, within=METRICS, key="metric")
        # Unlike importlib it also finds objects, such as imsm.evaluation.metrics.paper_code.contain.
        metric = pkgutil.resolve_name(path)
    except UserError as error:
        raise UserError(f"{error}{hint}") from None
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"metric={name}: cannot be found ({error}); choose one of {', '.join(names)} or give the dotted name "
            f"of a module{hint}"
        ) from error
    missing = [part for part in ("INFO", "score") if not hasattr(metric, part)]
    if missing:
        raise UserError(
            f"metric={path}: lacks {' and '.join(missing)}; a metric defines INFO = MetricInfo(...) and "
            "score(prediction, references) -> float"
        )
    return cast(MetricModule, metric)
