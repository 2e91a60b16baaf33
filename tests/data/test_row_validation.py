"""Rows with values of a wrong type are rejected with the key or value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imsm.data.row_validation import get_answers, get_field, get_str, repr_short
from imsm.data.task import Task, task_module
from imsm.utils.errors import UserError

ROPES = {"id": "1", "background": "b.", "situation": "s.", "question": "q?"}
MULTIRC_ROW = {
    "paragraph": "p.", "question": "q?", "answer": "yes", "label": 1,
    "idx": {"paragraph": 0, "question": 0, "answer": 0},
}  # fmt: skip
INVALID = [
    ("webq", {"question": "q?", "answers": "Lowmere"}, "list"),
    ("webq", {"question": "q?", "answers": []}, "list"),
    ("webq", {"question": "q?", "answers": [3]}, "answers: .*3"),
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
    return list(task_module(task).examples([row], split="test", prompt_style="paper"))


@pytest.mark.parametrize(("name", "row", "message"), INVALID)
def test_a_value_of_a_wrong_type_is_rejected(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        examples(name, row)


def test_valid_rows_pass() -> None:
    (example,) = examples("ropes", {**ROPES, "answers": {"text": ["Pot"]}})
    assert example.golds == ("Pot",)
    (example,) = examples("multirc", MULTIRC_ROW)
    assert example.golds == ("yes",)


def test_typed_access() -> None:
    assert get_field({"a": None}, "a") is None
    assert get_str({"a": " "}, "a", allow_blank=True) == " "
    assert get_answers(["b", "c"], name="a") == ("b", "c")
    with pytest.raises(UserError, match="a: is missing; the keys are b"):
        get_field({"b": 1}, "a")
    with pytest.raises(UserError, match=r"must be an object with the key 'a', not 3 \(int\)"):
        get_field(3, "a")


def test_half_of_a_character_is_rejected_in_prompts_and_answers() -> None:
    row = json.loads(r'{"a": "\ud83d", "b": ["\ud83d\ude00", "\udc00"]}')
    with pytest.raises(UserError, match=r"a: contains \\ud83d"):
        get_str(row, "a")
    with pytest.raises(UserError, match=r"b: contains \\udc00"):
        get_answers(row["b"], name="b")


def test_long_values_are_shortened() -> None:
    assert repr_short("x" * 200) == f"'{'x' * 79}... (str)"
    assert repr_short([]) == "an empty list"
