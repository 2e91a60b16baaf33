"""Yes/no answers as the labels that accuracy, F1 and MCC count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from imsm.data.answer_text import yes_or_no
from imsm.utils.errors import UserError

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


def f1_of(golds: Sequence[Hashable], predictions: Sequence[Hashable], *, label: Hashable) -> float:
    """Harmonic mean of precision and recall of one label; 0 where it is undefined.

    Counted here: a bootstrap asks a thousand times, and a library's checks take longer than this.
    """
    both = sum(gold == label == said for gold, said in zip(golds, predictions, strict=True))
    either = sum(gold == label for gold in golds) + sum(said == label for said in predictions)
    return 2 * both / either if either else 0.0


def correlation_of(golds: Sequence[Hashable], predictions: Sequence[Hashable]) -> float:
    """Matthews' correlation of any number of labels (Gorodkin 2004); 0 where it is undefined."""
    right = sum(gold == said for gold, said in zip(golds, predictions, strict=True))
    count, true, said = len(golds), Counter(golds), Counter(predictions)
    chance = sum(number * said[label] for label, number in true.items())
    spread = [count**2 - sum(number**2 for number in each.values()) for each in (true, said)]
    if not all(spread):
        return 0.0
    return float((right * count - chance) / (spread[0] ** 0.5 * spread[1] ** 0.5))
