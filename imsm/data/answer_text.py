"""Text rules that several tasks share: labels as words, the answer in a response."""

import re
from functools import lru_cache
from typing import Any

from imsm.utils.errors import UserError

_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_LABELS = {0: "no", 1: "yes"}


def first_line(response: str) -> str:
    """Return the first non-blank line without outer whitespace, or ""."""
    text = response.strip()
    return text.splitlines()[0].rstrip() if text else ""


# a bootstrap evaluates the same responses a thousand times
@lru_cache(maxsize=2**16)
def yes_or_no(response: str) -> str:
    """Return "yes" or "no" if that is the first word, else "" ("No." -> no, "not" -> "")."""
    match = _YES_OR_NO.match(response)
    return match.group(1).lower() if match else ""


def label_to_answer(label: Any) -> str:
    """Return "no" for label 0 and "yes" for 1.

    Raises:
        UserError: Any other label; the Hub marks hidden ones with -1.
    """
    if not isinstance(label, int) or label not in _LABELS:
        raise UserError(f"label={label!r}: must be 0 or 1 (-1 is a hidden label); choose a labelled split")
    return _LABELS[label]


def collapse_spaces(text: str) -> str:
    """Strip the text and collapse runs of spaces and tabs; line breaks are kept."""
    return re.sub(r"[ \t]+", " ", text).strip()
