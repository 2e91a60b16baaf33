"""Evaluation examples whose prompts are also training prompts."""

from collections.abc import Sequence
from typing import Any

from imsm.data.example import Example

_MAX_IDS = 20


def find_contamination(examples: Sequence[Example], training_examples: Sequence[Example]) -> dict[str, Any]:
    """Find evaluation examples whose prompt is in the training data, ignoring case and whitespace.

    Returns:
        {"count": number of such examples, "ids": ids of the first 20}.
    """
    training_prompts = {_normalize(example.prompt) for example in training_examples}
    ids = [example.id for example in examples if _normalize(example.prompt) in training_prompts]
    return {"count": len(ids), "ids": ids[:_MAX_IDS]}


def _normalize(prompt: str) -> str:
    return " ".join(prompt.lower().split())
