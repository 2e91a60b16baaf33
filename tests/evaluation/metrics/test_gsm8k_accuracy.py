"""GSM8K accuracy by example."""

from __future__ import annotations

import pytest

from imsm.evaluation.metrics import gsm8k_accuracy
from imsm.utils.errors import UserError


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("18", "3*6=18\nThe answer is 18.", 1),
        ("3*6=18\nThe answer is 18.", "The answer is 18.", 1),
        ("2125", "The answer is 2,125.", 1),
        ("The answer is 2,125.", "The answer is 2125.", 1),
        ("2.125", "The answer is 2,125.", 0),
        ("The answer is $18.00", "The answer is 18.", 1),
        ("1.5", "The answer is 15.", 0),
        ("15", "The answer is 5.", 0),
        ("-5", "The answer is 5.", 0),
        ("3/2", "The answer is 1.5.", 1),
        ("1/0", "The answer is 1.", 0),
        ("2 1/0", "The answer is 2.", 0),
        ("2 1/2", "The answer is 2.5.", 1),
        ("-2 1/2", "The answer is -2.5.", 1),
        ("2 1/2", "The answer is 2.", 0),
        ("1e3", "The answer is 1,000.", 1),
        ("1e3", "The answer is 3.", 0),
        ("so it is 18 in all", "The answer is 18.", 1),
        ("", "The answer is 18.", 0),
        ("eighteen", "The answer is 18.", 0),
    ],
)
def test_numbers_are_compared(prediction: str, reference: str, right: int) -> None:
    assert gsm8k_accuracy.score(prediction, [reference]) == right


def test_a_reference_without_a_number_is_rejected() -> None:
    with pytest.raises(UserError, match="without a number"):
        gsm8k_accuracy.score("1", ["none"])
