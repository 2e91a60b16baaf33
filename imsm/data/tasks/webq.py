"""WebQuestions: closed-book questions; a forgetting test.

A record:
{"url": "", "question": "what towns lie on the river arvel?", "answers": ["Port Senn", "Lowmere"]}

All answers of the list are accepted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, first_line
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str

PROMPT = (
    "Please provide a concise answer to the following question using one or a few words."
    "\nQuestion: {question}\nAnswer:"
)


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per question; the paper's prompt needs no correction."""
    for number, row in enumerate(rows):
        question = get_str(row, "question")
        if prompt_style == "corrected":
            question = collapse_spaces(question)
        yield Example(
            id=f"webq/{split}/{number}",
            prompt=PROMPT.format(question=question),
            golds=get_answers(get_field(row, "answers"), name="answers"),
        )


extract = first_line
