"""MultiRC (SuperGLUE), yes/no questions only: a forgetting test.

Records, one per answer:
{"paragraph": "Joan left the mill at noon. It rained. She came home wet.",
 "question": "Did Joan stay dry?", "answer": "No", "label": 1,
 "idx": {"paragraph": 3, "question": 8, "answer": 21}}

A question is used if one of its correct answers (label 1) is exactly yes, no, true or false; true
means yes and false means no. The paper's 312 questions are from validation (52) and train (260). It
joins sentences with four spaces where the Hub's text has one, so prompts are not byte-equal.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, label_to_answer, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

_INSTRUCTION = "Please answer the question according to the contents just with yes or no.\nQuestion: "
# (before the question, between question and passage, after the passage)
PARTS = {
    # the spaces before both line breaks are in the paper
    "paper": (_INSTRUCTION, " \nContent: ", " \nAnswer:"),
    "corrected": (_INSTRUCTION, "\nContent: ", "\nAnswer:"),
}
YES_OR_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per question with a correct yes/no answer; the passage may be truncated."""
    before, between, after = PARTS[prompt_style]
    for (paragraph, number), row, gold in _yes_or_no_questions(rows):
        question, passage = get_str(row, "question").strip(), get_str(row, "paragraph").rstrip()
        if prompt_style == "corrected":
            question, passage = collapse_spaces(question), collapse_spaces(passage)
        start = len(before) + len(question) + len(between)
        yield Example(
            id=f"multirc/{split}/{paragraph}-{number}",
            prompt=f"{before}{question}{between}{passage}{after}",
            golds=(gold,),
            context=(start, start + len(passage)),
            group=f"multirc/{split}/passage-{paragraph}",
        )


extract = yes_or_no


def _yes_or_no_questions(
    rows: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[tuple[int, int], Mapping[str, Any], str]]:
    """Yield ((paragraph, question) number, one of its rows, yes or no) once per question."""
    seen = set()
    for row in rows:
        index = get_field(row, "idx")
        number = (get_field(index, "paragraph"), get_field(index, "question"))
        gold = YES_OR_NO.get(get_str(row, "answer", allow_blank=True).strip().lower())
        correct = label_to_answer(get_field(row, "label")) == "yes"
        # the first correct answer counts; a question may have several with the same meaning
        if correct and gold is not None and number not in seen:
            seen.add(number)
            yield number, row, gold
