"""Rows of a test that also stand in what was learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imsm.data.example import Example

_NAMED = 20


def find_contamination(test: Sequence[Example], learned: Sequence[Example]) -> dict[str, Any]:
    """How many test items ask what was learned, by the words of their prompts, and which.

    Returns:
        {"count": how many, "ids": the first twenty of them}.
    """
    known = {_words(example.prompt) for example in learned}
    found = [example.id for example in test if _words(example.prompt) in known]
    return {"count": len(found), "ids": found[:_NAMED]}


def _words(prompt: str) -> str:
    return " ".join(prompt.lower().split())
