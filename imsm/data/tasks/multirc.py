"""MultiRC (SuperGLUE), its yes/no questions: a forgetting test.

Records, one per answer:
{"paragraph": "Joan left the mill at noon. It rained. She came home wet.",
 "question": "Did Joan stay dry?", "answer": "No", "label": 1,
 "idx": {"paragraph": 3, "question": 8, "answer": 21}}

A question counts if one of its correct answers (label 1) is exactly yes, no, true or false;
true is yes and false is no. The paper's 312 come from validation (52), then train (260). It joins
sentences by four blanks, where the hub's text has one: no prompt from the hub equals its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import label_answer, single_blanks, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

# (before the question, between question and passage, after the passage)
PARTS = {
    # The blanks before both line breaks are the paper's.
    "paper": (
        "Please answer the question according to the contents just with yes or no.\nQuestion: ",
        " \nContent: ",
        " \nAnswer:",
    ),
    "corrected": (
        "Please answer the question according to the contents just with yes or no.\nQuestion: ",
        "\nContent: ",
        "\nAnswer:",
    ),
}
YES_OR_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per question that has a correct yes/no answer; the passage may be cut.

    Raises:
        UserError: a part that is no text, or a label other than 0 and 1.
    """
    before, between, after = PARTS[prompts]
    for (paragraph, number), row, gold in _yes_or_no_questions(rows):
        question, passage = get_str(row, "question").strip(), get_str(row, "paragraph").rstrip()
        if prompts == "corrected":
            question, passage = single_blanks(question), single_blanks(passage)
        start = len(before) + len(question) + len(between)
        yield Example(
            id=f"multirc/{split}/{paragraph}-{number}",
            prompt=f"{before}{question}{between}{passage}{after}",
            golds=(gold,),
            context=(start, start + len(passage)),
            group=f"multirc/{split}/passage-{paragraph}",
        )


def extract(generation: str) -> str:
    """Gives yes, no, or "" where the first word is neither."""
    return yes_or_no(generation)


def _yes_or_no_questions(
    rows: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[tuple[int, int], Mapping[str, Any], str]]:
    """((paragraph, question) number, one of its rows, yes or no) for each question, once."""
    seen = set()
    for row in rows:
        index = get_field(row, "idx")
        number = (get_field(index, "paragraph"), get_field(index, "question"))
        gold = YES_OR_NO.get(get_str(row, "answer", blank=True).strip().lower())
        correct = label_answer(get_field(row, "label")) == "yes"
        if correct and gold is not None and number not in seen:
            seen.add(number)
            yield number, row, gold
