"""MultiRC (SuperGLUE) in its own form: is a proposed answer to a question correct?

A record, one per proposed answer:
{"paragraph": "Joan left the mill at noon. It rained. She came home wet.",
 "question": "How did Joan come home?", "answer": "Wet", "label": 1,
 "idx": {"paragraph": 3, "question": 8, "answer": 21}}

Each record is a yes/no example. The answers to a question are one group, so `question_exact_match` is SuperGLUE's
EM, and `f1` its F1 over all answers.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, label_to_answer, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

_BEFORE = "Please decide according to the contents whether the answer is correct, just with yes or no.\nQuestion: "
_BETWEEN, _AFTER, _END = "\nContent: ", "\nAnswer: ", "\nCorrect:"


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per proposed answer; the passage may be truncated. Both prompt styles are the same."""
    for row in rows:
        index = get_field(row, "idx")
        question = f"multirc_answers/{split}/{get_field(index, 'paragraph')}-{get_field(index, 'question')}"
        text, passage = (collapse_spaces(get_str(row, key)) for key in ("question", "paragraph"))
        start = len(_BEFORE + text + _BETWEEN)
        yield Example(
            id=f"{question}-{get_field(index, 'answer')}",
            # a few proposed answers of the dataset are blank
            prompt=f"{_BEFORE}{text}{_BETWEEN}{passage}{_AFTER}"
            f"{collapse_spaces(get_str(row, 'answer', allow_blank=True))}{_END}",
            golds=(label_to_answer(get_field(row, "label")),),
            context=(start, start + len(passage)),
            group=question,
        )


extract = yes_or_no
