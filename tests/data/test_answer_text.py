"""Labels as words and answers in responses."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.data.answer_text import collapse_spaces, first_line, label_to_answer, yes_or_no
from imsm.utils.errors import UserError


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("yes", "yes"),
        ("\n No.", "no"),
        ("'Yes', they do", "yes"),
        ("not", ""),
        ("None", ""),
        ("yesterday", ""),
        ("Maybe yes", ""),
        ("", ""),
    ],
)
def test_yes_or_no_is_the_first_word(response: str, answer: str) -> None:
    assert yes_or_no(response) == answer


def test_first_line() -> None:
    assert first_line(" \n Port Senn \nLowmere") == "Port Senn"
    assert first_line(" \n") == ""


@pytest.mark.parametrize("label", [-1, 2, "1", None])
def test_other_labels_are_rejected(label: Any) -> None:
    assert (label_to_answer(0), label_to_answer(1)) == ("no", "yes")
    with pytest.raises(UserError, match="label="):
        label_to_answer(label)


def test_collapse_spaces_keeps_line_breaks() -> None:
    assert collapse_spaces(" a  b\t c \n d ") == "a b c \n d"
