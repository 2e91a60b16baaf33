"""GSM8K: is the final number right?"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from imsm.data.tasks.gsm8k import extract
from imsm.evaluation.metrics import MetricInfo
from imsm.utils.errors import UserError

INFO = MetricInfo(
    name="gsm8k_accuracy",
    meaning='share of items whose number after "The answer is" (else the last one) is right',
    higher_is_better=True,
    scale=100.0,
)


def score(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction's final number equals an accepted answer's: 2,125 is 2125.00.

    Raises:
        UserError: an accepted answer without a number.
    """
    value = _number(prediction)
    right = [_number(gold) for gold in golds]
    if None in right:
        raise UserError(f"The accepted answers {list(golds)!r} hold one without a number.")
    return float(value is not None and value in right)


def _number(text: str) -> Fraction | None:
    digits = extract(text)
    try:
        return Fraction(digits) if digits else None
    except ZeroDivisionError:
        return None
