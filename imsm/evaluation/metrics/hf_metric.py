"""A metric as an `evaluate.Metric`; imported by `metrics.load` only, because importing takes seconds."""

import datasets
import evaluate

from imsm.evaluation.metrics.base import MetricModule, aggregate

USAGE = """
Args:
    predictions: list of strings, one per example.
    references: list of lists of strings, the accepted answers of each example.
Returns:
    {name of the metric: value}
"""


class HFTextMetric(evaluate.Metric):
    """Compare predictions (strings) with references (lists of accepted strings), in memory."""

    def __init__(self, metric: MetricModule) -> None:
        self._metric = metric
        super().__init__(config_name=metric.INFO.name, keep_in_memory=True)
        self.info.module_name = metric.INFO.name  # the library uses the class name

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self._metric.INFO.meaning,
            citation="",
            inputs_description=USAGE,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _build_data_dir(self) -> str:
        # The library creates a directory in the user's home even for an in-memory metric.
        return ""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {self._metric.INFO.name: aggregate(self._metric, predictions, references)}
