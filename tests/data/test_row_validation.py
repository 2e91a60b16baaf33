"""Rows that are not of the type that a dataset has: told, never scored."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.task import Task, task_module
from imsm.utils.errors import UserError

ROPES = {"id": "1", "background": "b.", "situation": "s.", "question": "q?"}
MULTIRC_ROW = {
    "paragraph": "p.", "question": "q?", "answer": "yes", "label": 1,
    "idx": {"paragraph": 0, "question": 0, "answer": 0},
}  # fmt: skip
WRONG = [
    ("webq", {"question": "q?", "answers": "Lowmere"}, "list"),
    ("webq", {"question": "q?", "answers": []}, "list"),
    ("webq", {"question": "q?", "answers": [3]}, "text"),
    ("webq", {"question": None, "answers": ["a"]}, "question"),
    ("ropes", {**ROPES, "answers": {"text": "Pot"}}, "list"),
    ("ropes", {**ROPES, "answers": {"text": []}}, "list"),
    ("mrpc", {"sentence1": "a", "sentence2": "b", "label": -1}, "-1"),
    ("mrpc", {"sentence1": "a", "label": 1}, "sentence2"),
    ("cola", {"sentence": "a", "label": "yes"}, "yes"),
    ("gsm8k", {"question": "q", "answer": 7}, "answer"),
    ("multirc", {**MULTIRC_ROW, "label": -1}, "-1"),
]


def examples(name: str, row: dict[str, Any]) -> list:
    task = Task(
        name=name, module=f"imsm.data.tasks.{name}", hub=None,
        splits={"train": [], "test": ["test"]}, metrics=["contain"],
        max_prompt_tokens=8, max_new_tokens=8, stop=None,
    )  # fmt: skip
    return list(task_module(task).examples([row], split="test", prompts="paper"))


@pytest.mark.parametrize(("name", "row", "named"), WRONG)
def test_a_value_of_a_wrong_type_is_refused_and_named(name: str, row: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        examples(name, row)


def test_what_is_right_passes() -> None:
    (example,) = examples("ropes", {**ROPES, "answers": {"text": ["Pot"]}})
    assert example.golds == ("Pot",)
    (example,) = examples("multirc", MULTIRC_ROW)
    assert example.golds == ("yes",)
