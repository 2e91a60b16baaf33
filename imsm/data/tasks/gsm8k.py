r"""GSM8K: school sums, answered by a rationale and a number.

A record:
{"question": "Tom packs 6 boxes with 8 jars each and drops 3 jars. How many jars are whole?",
 "answer": "He packs 6*8=<<6*8=48>>48 jars.\nThen 48-3=<<48-3=45>>45 are whole.\n#### 45"}

The calculator notes <<...>> are removed and "#### 45" becomes "The answer is 45.".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import single_blanks
from imsm.data.example import Example
from imsm.data.row_validation import get_str
from imsm.utils.errors import UserError

# The braces around "answer" are the paper's and meant literally. There is no "Answer:" cue.
INSTRUCTION = (
    "You are an expert in math.\nBelow is a math question.\n"
    "Write a response that appropriately answers the question.\n"
    "Your final answer should be an integer at the end of your response, "
    "formatted as: The answer is {answer}.\n"
)
_NOTE = re.compile(r"<<.*?>>", re.DOTALL)
_CUE = re.compile(r"the answer is([^\n]*)", re.IGNORECASE)
# A sign counts only where no number or letter stands before it: the 3 of "16-3" is not negative.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\u2212])?\s?\$?"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)"
)


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per sum; the gold is the whole rationale.

    Raises:
        UserError: a question or an answer that is no text, or an answer without its number.
    """
    for number, row in enumerate(rows):
        question = get_str(row, "question")
        if prompts == "corrected":
            question = single_blanks(question)
        yield Example(
            id=f"gsm8k/{split}/{number}", prompt=INSTRUCTION + question, golds=(_rationale(get_str(row, "answer")),)
        )


def extract(generation: str) -> str:
    """The number on the first line that says "The answer is" and has one, else the last number.

    Given as plain digits ("2,125." becomes "2125"); "" where there is no number. The first such
    line, because what follows it is a next question that the model made up.
    """
    for cue in _CUE.finditer(generation):
        numbers = _numbers(cue.group(1))
        if numbers:
            return numbers[0]
    numbers = _numbers(generation)
    return numbers[-1] if numbers else ""


def _numbers(text: str) -> list[str]:
    found = []
    for match in _NUMBER.finditer(text):
        sign = "-" if match.group(0)[0] in "-\u2212" else ""
        found.append(sign + match.group(1).replace(",", ""))
    return found


def _rationale(answer: str) -> str:
    steps, mark, result = _NOTE.sub("", answer).rpartition("#### ")
    if not mark:
        raise UserError(f"the answer {answer!r} does not end in a line '#### <number>'.")
    return f"{steps}The answer is {result.strip()}."
