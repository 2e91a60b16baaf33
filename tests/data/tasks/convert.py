"""Run a task module on one row."""

from __future__ import annotations

import re
from typing import Any

from imsm.data.example import Example


def convert(module: Any, row: dict[str, Any], prompt_style: str = "paper") -> Example:
    (example,) = module.examples([row], split="test", prompt_style=prompt_style)
    return example


def cut_at_stop(stop: str | None, text: str) -> str:
    """Return the text up to the end of the first match, where generation stops."""
    assert stop is not None
    match = re.search(stop, text)
    assert match is not None
    return text[: match.end()]
