"""ROPES: apply what an article explains to the situation it ends with.

A record:
{"id": "417", "background": "Clay holds water longer than sand does. ...",
 "situation": "Mira planted beans in two pots. Pot A held sand and pot B held clay. ",
 "question": "Which pot had to be watered more often?", "answers": {"text": ["Pot A"]}}

The answer is a span of the article or the question. The test split's answers are hidden, so
validation is the test. Several questions share an article; they form one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import first_line, single_blanks
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str

# (before the article, after it, after the question)
PARTS = {
    # The blank between question and "Answer:", and none before the question, are the paper's.
    "paper": (
        "Given an article and a corresponding question about the article, answer the question "
        "accurately based on the provided context in the articles.\nArticle: ",
        "\nQuestion:",
        " \nAnswer:",
    ),
    "corrected": (
        "Given an article and a corresponding question about the article, answer the question "
        "accurately based on the provided context in the article.\nArticle: ",
        "\nQuestion: ",
        "\nAnswer:",
    ),
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per question; the article (background and situation) may be cut.

    Raises:
        UserError: a part that is no text, or answers that are no list of texts (hidden: empty).
    """
    before, between, after = PARTS[prompts]
    passages: dict[str, int] = {}
    for number, row in enumerate(rows):
        article = f"{get_str(row, 'background')} {get_str(row, 'situation')}".replace("\n", " ")
        question = get_str(row, "question").lstrip()
        answers = get_answers(get_field(get_field(row, "answers"), "text"), name="answers.text")
        golds = [answer.rstrip() for answer in answers]
        if prompts == "corrected":
            article, question = single_blanks(article), single_blanks(question)
            golds = [gold.strip() for gold in golds]
        passage = passages.setdefault(article, len(passages))
        yield Example(
            id=f"ropes/{split}/{number}",
            prompt=f"{before}{article}{between}{question}{after}",
            golds=tuple(golds),
            context=(len(before), len(before) + len(article)),
            group=f"ropes/{split}/passage-{passage}",
        )


def extract(generation: str) -> str:
    """The first line that is not blank."""
    return first_line(generation)
