"""Texts as the released code compares them: normalised, then as strings, not as words."""

from __future__ import annotations

import re
import string

_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without marks and articles, single blanks: "1.5" is "15", "A" is nothing."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def says_yes(text: str) -> bool:
    """Whether "yes" stands anywhere in it, in "yesterday" too; all else counts as no."""
    return "yes" in normalised(text)
