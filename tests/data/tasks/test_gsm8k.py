"""GSM8K."""

from __future__ import annotations

import pytest

from imsm.data.tasks import gsm8k
from imsm.utils.errors import UserError
from tests.data.shipped import shipped_task
from tests.data.tasks.convert import convert, cut_at_stop

ROW = {"question": "How  many?", "answer": "1+1=<<1+1=2>>2 pots.\n#### 2,125"}


def test_prompt_and_rationale() -> None:
    example = convert(gsm8k, ROW)
    assert example.prompt.endswith("formatted as: The answer is {answer}.\nHow  many?")
    assert example.golds == ("1+1=2 pots.\nThe answer is 2,125.",)
    assert convert(gsm8k, ROW, "corrected").prompt.endswith("\nHow many?")
    with pytest.raises(UserError, match="####"):
        convert(gsm8k, {**ROW, "answer": "2"})


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("The answer is 18.", "18"),
        ("so 4*5=20.\nThe answer is 2,125.", "2125"),
        ("The answer is $1,234,567.50", "1234567.50"),
        ("the ANSWER is: **-7**", "-7"),
        ("The answer is \u22127", "-7"),
        ("The answer is -$7", "-7"),
        ("The answer is 3/4 cup", "3/4"),
        ("The answer is 18.\nAnother sum.\nThe answer is 99.", "18"),
        ("The answer is plain.\nThe answer is 9.\n10", "9"),
        ("16-3=13, and 13-4=9", "9"),
        ("16-3", "3"),
        ("5 and then -12", "-12"),
        ("no number", ""),
        ("1,2,3", "3"),
        ("The answer is 2 1/2 cups", "2 1/2"),
        ("it takes -2 1/2", "-2 1/2"),
        ("The answer is 1e3.", "1e3"),
        ("The answer is 2.5E+3", "2.5E+3"),
        ("The answer is 1e999999", "1"),
        ("The answer is 3each", "3"),
        ("The answer is 5,6", "5"),
        ("5,6", "6"),
        ("The answer is 1,000", "1000"),
        ("The answer is $5.00", "5.00"),
        ("The answer is -3", "-3"),
        ("The answer is 5 dollars and 6 cents", "5"),
        ("5 dollars and 6", "6"),
    ],
)
def test_extract(response: str, number: str) -> None:
    assert gsm8k.extract(response) == number


@pytest.mark.parametrize(
    "response",
    ["2+2=4\nThe answer is 4.\nA next sum\nThe answer is 5.\n", "The answer is near.\nThe answer is 6.\n7 more\n"],
)
def test_the_stop_does_not_change_the_number(response: str) -> None:
    stopped = cut_at_stop(shipped_task("gsm8k").stop, response)
    assert len(stopped) < len(response)
    assert gsm8k.extract(stopped) == gsm8k.extract(response)
