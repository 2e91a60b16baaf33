"""ROPES: apply the knowledge of an article to the situation at its end.

A record:
{"id": "417", "background": "Clay holds water longer than sand does. ...",
 "situation": "Mira planted beans in two pots. Pot A held sand and pot B held clay. ",
 "question": "Which pot had to be watered more often?", "answers": {"text": ["Pot A"]}}

The answer is a span of the article or the question. The answers of the test split are hidden, so
validation is used. Questions on the same article form a group.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, first_line
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str

# (before the article, after it, after the question)
PARTS = {
    # the space between question and "Answer:" and the missing one before the question are in the paper
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


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per question; the article (background and situation) may be truncated."""
    before, between, after = PARTS[prompt_style]
    passages: dict[str, int] = {}
    for number, row in enumerate(rows):
        article = f"{get_str(row, 'background')} {get_str(row, 'situation')}".replace("\n", " ")
        question = get_str(row, "question").lstrip()
        answers = get_answers(get_field(get_field(row, "answers"), "text"), name="answers.text")
        golds = [answer.rstrip() for answer in answers]
        if prompt_style == "corrected":
            article, question = collapse_spaces(article), collapse_spaces(question)
            golds = [gold.strip() for gold in golds]
        # the dataset has no id for an article
        passage = passages.setdefault(article, len(passages))
        yield Example(
            id=f"ropes/{split}/{number}",
            prompt=f"{before}{article}{between}{question}{after}",
            golds=tuple(golds),
            context=(len(before), len(before) + len(article)),
            group=f"ropes/{split}/passage-{passage}",
        )


extract = first_line
