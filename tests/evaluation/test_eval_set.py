"""What distinguishes two evaluation sets."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.example import Example
from imsm.data.task import Task
from imsm.data.tokenization import TokenizationStats
from imsm.evaluation.eval_set import EvalSet
from imsm.utils.options import load_option


def made(references: tuple[str, ...] = ("4",), **changed: Any) -> EvalSet:
    values = load_option("data", "gsm8k")
    task = Task(**values)
    examples = [Example(id="a", prompt="2 + 2?", golds=references)]
    report = TokenizationStats()
    return EvalSet(task=task.model_copy(update=changed), examples=examples, prompts=[], tokenization_stats=report)


@pytest.mark.parametrize(
    "changed",
    [
        {"references": ("4", "four")},
        {"max_new_tokens": 2},
        {"max_prompt_tokens": 30},
        {"stop": "\n"},
        {"metrics": ["contain"]},
        {"paper_code_metrics": []},
    ],
)
def test_every_input_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    assert made().fingerprint == made().fingerprint
    assert made().fingerprint != made(**changed).fingerprint
