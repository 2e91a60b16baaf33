"""What distinguishes two evaluation sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imsm.data.example import Example
from imsm.data.task import Task
from imsm.data.tokenization import TokenizationStats
from imsm.evaluation.eval_set import EvalSet, hash_examples
from imsm.utils.hashing import hash_json
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


def test_examples_are_hashed_as_a_stream_with_the_hash_of_their_list() -> None:
    examples = [Example(id=f"own/{n}", prompt="é\u2028\n", golds=("a", "b" * n or "c")) for n in range(3)]
    for some in ([], examples[:1], examples):
        assert hash_examples(some) == hash_json([[e.id, e.prompt, list(e.golds)] for e in some])
    chats = [replace(examples[0], turns=(("user", text),)) for text in ("a", "b")]
    assert len({hash_examples([example]) for example in (*chats, examples[0])}) == 3
