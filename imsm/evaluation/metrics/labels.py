"""Yes/no answers as labels, and the statistics that accuracy, F1 and MCC compute from them."""

from collections import Counter
from collections.abc import Hashable, Sequence

from imsm.data.answer_text import yes_or_no
from imsm.utils.errors import UserError

UNPARSED = "unparsed"


def predicted_label(prediction: str) -> str:
    """Return yes, no, or a third label that no reference has, so that it is never correct."""
    return yes_or_no(prediction) or UNPARSED


def reference_label(references: Sequence[str]) -> str:
    """Return yes or no.

    Raises:
        UserError: The reference is neither.
    """
    label = yes_or_no(references[0])
    if not label:
        raise UserError(
            f"reference={references[0]!r}: is neither yes nor no, which accuracy, f1 and mcc require; for other "
            "answers use data.metric=exact_match, contain or token_f1"
        )
    return label


# Implemented here: a bootstrap calls these thousands of times, and scikit-learn's input checks are slower.


def f1_score(references: Sequence[Hashable], predictions: Sequence[Hashable], *, label: Hashable) -> float:
    """Compute the F1 of one label; 0 where undefined."""
    both = sum(reference == label == predicted for reference, predicted in zip(references, predictions, strict=True))
    # Equals 2PR / (P + R), but is defined if one of precision and recall is not.
    either = sum(value == label for values in (references, predictions) for value in values)
    return 2 * both / either if either else 0.0


def matthews_correlation(references: Sequence[Hashable], predictions: Sequence[Hashable]) -> float:
    """Compute the Matthews correlation of any number of labels (Gorodkin 2004); 0 where undefined."""
    correct = sum(reference == predicted for reference, predicted in zip(references, predictions, strict=True))
    total, reference_counts, predicted_counts = len(references), Counter(references), Counter(predictions)
    chance = sum(count * predicted_counts[label] for label, count in reference_counts.items())
    spread = [total**2 - sum(n**2 for n in counts.values()) for counts in (reference_counts, predicted_counts)]
    # A side with one label only has no correlation with anything.
    if not all(spread):
        return 0.0
    return float((correct * total - chance) / (spread[0] ** 0.5 * spread[1] ** 0.5))
