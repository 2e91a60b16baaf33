"""GSM8K accuracy: whether the final number is correct."""

from collections.abc import Sequence
from fractions import Fraction

from imsm.data.tasks.gsm8k import extract
from imsm.evaluation.metrics.base import MetricInfo
from imsm.utils.errors import UserError

INFO = MetricInfo(
    name="gsm8k_accuracy",
    meaning='fraction of examples whose number after "The answer is" (else the last number) is correct',
)


def score(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the final number equals that of an accepted answer (2,125 equals 2125.00, 2 1/2 equals 2.5).

    Raises:
        UserError: An accepted answer contains no number.
    """
    value = _number(prediction)
    accepted = [_number(reference) for reference in references]
    if None in accepted:
        raise UserError(f"gsm8k_accuracy: references {list(references)!r}: one is without a number; fix the data")
    return float(value is not None and value in accepted)


def _number(text: str) -> Fraction | None:
    digits = extract(text)
    try:
        # Exact, unlike floats, and 2125.00 equals 2125, unlike strings.
        return _fraction(digits) if digits else None
    except ZeroDivisionError:
        return None


def _fraction(digits: str) -> Fraction:
    """Return the value of a number as `extract` writes it; "-2 1/2" is -5/2."""
    whole, _, part = digits.removeprefix("-").rpartition(" ")
    value = Fraction(whole or 0) + Fraction(part)
    return -value if digits.startswith("-") else value
