"""The answer in a generated text, and the small text rules that several tasks share."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from imsm.utils.errors import UserError

_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_LABELS = {0: "no", 1: "yes"}


def first_line(generation: str) -> str:
    """The first line that is not blank, without outer blanks; "" where all are blank."""
    text = generation.strip()
    return text.splitlines()[0].rstrip() if text else ""


@lru_cache(maxsize=2**16)  # a bootstrap asks a thousand times for the same texts
def yes_or_no(generation: str) -> str:
    """Gives yes or no if that is the first word, else "": "No." is no, "not" is ""."""
    found = _YES_OR_NO.match(generation)
    return found.group(1).lower() if found else ""


def label_answer(label: Any) -> str:
    """A 0/1 label as the word that the prompts ask for.

    Raises:
        UserError: any other label; the hub marks hidden ones with -1.
    """
    if not isinstance(label, int) or label not in _LABELS:
        raise UserError(f"label {label!r} is neither 0 nor 1 (-1 marks a hidden one). Choose a labelled split.")
    return _LABELS[label]


def single_blanks(text: str) -> str:
    """No outer blanks and no double ones; line breaks stay. For the corrected prompts."""
    return re.sub(r"[ \t]+", " ", text).strip()
