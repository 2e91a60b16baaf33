"""Yes/no answers as the labels that accuracy, F1 and MCC count."""

from __future__ import annotations

from collections.abc import Sequence

from imsm.data.answers import yes_or_no
from imsm.errors import UserError

UNPARSED = "unparsed"


def predicted_label(prediction: str) -> str:
    """yes, no, or a third label that no gold has, so that it never counts as right."""
    return yes_or_no(prediction) or UNPARSED


def gold_label(golds: Sequence[str]) -> str:
    """The gold's yes or no.

    Raises:
        UserError: a gold that is something else.
    """
    label = yes_or_no(golds[0])
    if not label:
        raise UserError(
            f"The accepted answer {golds[0]!r} is neither yes nor no, which is all that accuracy, "
            "f1 and mcc know. For other answers: data.metric=exact_match, contain or token_f1."
        )
    return label
