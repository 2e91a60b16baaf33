"""A metric's module as an `evaluate.Metric`; slow to import, so only `metrics.load` does."""

from __future__ import annotations

import datasets
import evaluate

from imsm.evaluation.metrics.base import MetricModule, aggregate

USAGE = """
Args:
    predictions: list of texts, one per item.
    references: list of lists of texts, the accepted answers of each item.
Returns:
    {name of the metric: value}
"""


class HFTextMetric(evaluate.Metric):
    """Predictions (texts) against references (lists of accepted texts), in memory."""

    def __init__(self, module: MetricModule) -> None:
        """Takes a module that `imsm.evaluation.metrics` describes."""
        self._module = module
        super().__init__(config_name=module.INFO.name, keep_in_memory=True)
        self.info.module_name = module.INFO.name  # the library takes the class's name

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self._module.INFO.meaning,
            citation="",
            inputs_description=USAGE,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _build_data_dir(self) -> str:
        # The library makes a folder under the user's home even for a metric in memory.
        return ""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {self._module.INFO.name: aggregate(self._module, predictions, references)}
