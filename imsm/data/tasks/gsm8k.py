r"""GSM8K: grade-school math, answered with a rationale and a number.

A record:
{"question": "Tom packs 6 boxes with 8 jars each and drops 3 jars. How many jars are whole?",
 "answer": "He packs 6*8=<<6*8=48>>48 jars.\nThen 48-3=<<48-3=45>>45 are whole.\n#### 45"}

The calculator annotations <<...>> are removed and "#### 45" becomes "The answer is 45.".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces
from imsm.data.example import Example
from imsm.data.row_validation import get_str, repr_short
from imsm.utils.errors import UserError

# the braces around "answer" are literal, as in the paper, and the prompt does not end in "Answer:"
INSTRUCTION = (
    "You are an expert in math.\nBelow is a math question.\n"
    "Write a response that appropriately answers the question.\n"
    "Your final answer should be an integer at the end of your response, "
    "formatted as: The answer is {answer}.\n"
)
_ANNOTATION = re.compile(r"<<.*?>>", re.DOTALL)
_CUE = re.compile(r"the answer is([^\n]*)", re.IGNORECASE)
# a sign counts only without a number or letter before it: the 3 of "16-3" is not negative
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\u2212])?\s?\$?"
    # 2 1/2; else digits with thousands separators, and decimals, an exponent of at most two digits or a denominator
    r"(\d+ \d+/\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,2}(?!\w)|/\d+)?|\.\d+)"
)


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per problem; the gold answer is the full rationale."""
    for number, row in enumerate(rows):
        question = get_str(row, "question")
        if prompt_style == "corrected":
            question = collapse_spaces(question)
        yield Example(
            id=f"gsm8k/{split}/{number}", prompt=INSTRUCTION + question, golds=(_rationale(get_str(row, "answer")),)
        )


def extract(response: str) -> str:
    """Return the number after the first "The answer is" with one, else the last number, or "".

    A number may have thousands separators, which are removed ("2,125." -> "2125"), decimals, a dollar sign
    ("$5.00" -> "5.00"), a minus sign, a denominator ("3/4"), an integer part before one ("2 1/2") or an
    exponent ("1e3"). Any other comma separates two numbers: "The answer is 5,6" -> "5".
    """
    # the first match counts, because base models continue with further problems
    for cue in _CUE.finditer(response):
        numbers = _numbers(cue.group(1))
        if numbers:
            return numbers[0]
    numbers = _numbers(response)
    return numbers[-1] if numbers else ""


def _numbers(text: str) -> list[str]:
    # U+2212, the mathematical minus, is written as well
    return [("-" if match[0][0] in "-\u2212" else "") + match[1].replace(",", "") for match in _NUMBER.finditer(text)]


def _rationale(answer: str) -> str:
    steps, mark, result = _ANNOTATION.sub("", answer).rpartition("#### ")
    if not mark:
        raise UserError(f"answer: must end in a line '#### <number>', not {repr_short(answer)}")
    return f"{steps}The answer is {result.strip()}."
