"""Custom datasets."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.tasks import jsonl
from imsm.utils.errors import UserError
from tests.data.tasks.convert import convert


@pytest.mark.parametrize("prompt_style", ["paper", "corrected"])
def test_the_prompt_is_unchanged_and_all_answers_are_accepted(prompt_style: str) -> None:
    example = convert(jsonl, {"input": "Q:  a ", "output": ["b", "c"], "more": 1}, prompt_style)
    assert (example.prompt, example.golds) == ("Q:  a ", ("b", "c"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "a", "output": 5}, r"^output: .*5 \(int\)"),
        ({"input": "a", "output": []}, "^output: .*an empty list"),
        ({"input": "a", "output": None}, r"^output: .*None \(NoneType\)"),
        ({"input": "a", "output": {"x": "b"}}, r"^output: .*\(dict\)"),
        ({"input": "a", "output": ["b", 7]}, r"^output: .*7 \(int\)"),
        ({"input": "a", "output": " "}, r"^output: .*' ' \(str\)"),
        ({"input": 3, "output": "b"}, r"^input: .*3 \(int\)"),
        ({"input": "a"}, "^must be an object with input and output.*the keys input$"),
        ({"prompt": "a"}, "^must be an object with input and output.*the keys prompt$"),
        (["a", "b"], r"^must be an object with input and output.*\(list\)$"),
    ],
)
def test_an_invalid_row_is_rejected_with_its_key(row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(jsonl, row)


def test_extract() -> None:
    assert jsonl.extract(" one\ntwo \n") == "one\ntwo"
