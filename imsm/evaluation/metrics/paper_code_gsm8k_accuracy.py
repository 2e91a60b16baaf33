"""GSM8K beside the released metrics: the number in the raw text is extracted, then compared.

The released code looks for a mark that neither its data nor its prompts have, and so compares
whole rationales; here alone its metric is not taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from imsm.data.tasks import gsm8k
from imsm.evaluation.metrics import MetricInfo, gsm8k_accuracy

INFO = MetricInfo(
    name="paper_code_gsm8k_accuracy",
    meaning="share of sums whose extracted number is right (the released scorer cannot work)",
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the number that the raw text gives is the accepted one."""
    return gsm8k_accuracy.score(gsm8k.extract(prediction), golds)
