"""Formats of ready-made examples, as other tools write them."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.row_formats import FORMATS, find_format, require_format
from imsm.utils.errors import UserError

USER, ANSWER = {"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "the Arvel"}
CHAT = [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": "Which sea?"}]
SEA = {"role": "assistant", "content": "the Belt"}


@pytest.mark.parametrize(
    ("row", "prompt", "golds"),
    [
        ({"input": "Q:\nA:", "output": " b"}, "Q:\nA:", (" b",)),
        ({"input": "Q", "output": ["b", "c"], "id": 4}, "Q", ("b", "c")),
        ({"prompt": "Q", "completion": " b"}, "Q", (" b",)),
        ({"question": "Q", "answer": "b"}, "Q", ("b",)),
        ({"question": "Q", "answer": ["b", "c"]}, "Q", ("b", "c")),
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n\n1 and 2", ("3",)),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Add.", ("3",)),
        ({"instruction": "Add.", "input": None, "output": "3"}, "Add.", ("3",)),
        ({"instruction": "Add.", "output": "3"}, "Add.", ("3",)),
        (
            {"instruction": "Add.", "input": "1", "output": "3", "system": "Be brief."},
            "Be brief.\n\nAdd.\n\n1",
            ("3",),
        ),
        ({"messages": [USER, ANSWER]}, "User: Which river?\n\nAssistant:", ("the Arvel",)),
        ({"prompt": [USER], "completion": [ANSWER]}, "User: Which river?\n\nAssistant:", ("the Arvel",)),
        (
            {"messages": [*CHAT, SEA]},
            "System: Be brief.\n\nUser: Which river?\n\nAssistant: the Arvel\n\nUser: Which sea?\n\nAssistant:",
            ("the Belt",),
        ),
    ],
)
def test_prompt_and_answers_of_each_format(row: dict[str, Any], prompt: str, golds: tuple[str, ...]) -> None:
    content = require_format(row).read(row)
    assert (content.prompt, content.golds) == (prompt, golds)


def test_a_chat_template_gets_the_turns_before_the_answer() -> None:
    row: dict[str, Any] = {"messages": [*CHAT, SEA]}
    assert require_format(row).read(row).turns == tuple((turn["role"], turn["content"]) for turn in CHAT)
    row = {"instruction": "Add.", "input": "1", "output": "3", "system": "Be brief."}
    assert require_format(row).read(row).turns == (("system", "Be brief."), ("user", "Add.\n\n1"))
    row = {"instruction": "Add.", "output": "3"}
    assert require_format(row).read(row).turns == ()


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"input": "", "output": "b"}, "input"),
        ({"input": " \n", "output": "b"}, "input"),
        ({"input": "Q", "output": " "}, "output"),
        ({"input": "Q", "output": []}, "output"),
        ({"input": "Q", "output": ["b", ""]}, "output"),
        ({"input": 5, "output": "b"}, "input"),
        ({"instruction": "", "input": "Q", "output": "b"}, "instruction"),
        ({"instruction": "Q", "input": 3, "output": "b"}, "input"),
        ({"instruction": "Q", "output": None}, "output"),
        ({"prompt": "Q", "completion": ""}, "completion"),
        ({"prompt": "Q", "completion": [ANSWER]}, "prompt and completion"),
        ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "completion"),
        ({"question": "Q", "answer": 7}, "answer"),
        ({"messages": "Q"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [USER]}, "messages: must end in"),
        ({"messages": [ANSWER]}, "messages: has no message of the user"),
        ({"messages": [USER, ANSWER, USER]}, "messages: must end in"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "message 1: role=tool"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "message 1: content"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: content"),
        ({"messages": [USER, "b"]}, "message 2"),
    ],
)
def test_a_blank_or_wrong_value_is_rejected_with_its_key(row: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        require_format(row).read(row)


@pytest.mark.parametrize("row", [{}, {"text": "a"}, {"prompt": "a", "chosen": "b"}, ["a"], 3, None])
def test_a_row_without_a_format_is_rejected(row: Any) -> None:
    assert find_format(row) is None
    with pytest.raises(UserError, match="input and output; or prompt and completion; or instruction and output"):
        require_format(row)


def test_a_row_of_several_formats_or_of_another_one_is_rejected() -> None:
    with pytest.raises(UserError, match="keep those of one format"):
        require_format({"question": "a", "answer": "b", "messages": [USER, ANSWER]})
    with pytest.raises(UserError, match="one format per file"):
        require_format({"instruction": "a", "input": "a", "output": "b"}, FORMATS[0])
