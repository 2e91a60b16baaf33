"""WebQuestions: closed-book questions about the world; a forgetting test.

A record:
{"url": "", "question": "what towns lie on the river arvel?", "answers": ["Port Senn", "Lowmere"]}

Every answer of the list is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import first_line, single_blanks
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str

PROMPT = (
    "Please provide a concise answer to the following question using one or a few words."
    "\nQuestion: {question}\nAnswer:"
)


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per question; nothing in the paper's prompt needs mending.

    Raises:
        UserError: a question that is no text, or answers that are no list of texts.
    """
    for number, row in enumerate(rows):
        question = get_str(row, "question")
        if prompts == "corrected":
            question = single_blanks(question)
        yield Example(
            id=f"webq/{split}/{number}",
            prompt=PROMPT.format(question=question),
            golds=get_answers(get_field(row, "answers"), name="answers"),
        )


def extract(generation: str) -> str:
    """The first line that is not blank."""
    return first_line(generation)
