"""CoLA (GLUE): is a sentence grammatical?

A record:
{"sentence": "The kettle that she wondered whether boiled was red.", "label": 0, "idx": 41}

label: 1 acceptable, 0 not. The test split's labels are hidden, so validation is the test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import label_answer, single_blanks, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

PROMPTS = {
    # The blank at the start and the missing one after "Sentence:" are the paper's.
    "paper": (
        " Given a sentence, judge the grammatical acceptability of the sentence with yes or no."
        "\nSentence:{sentence}\nOutput:"
    ),
    "corrected": (
        "Given a sentence, judge the grammatical acceptability of the sentence with yes or no."
        "\nSentence: {sentence}\nOutput:"
    ),
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per sentence.

    Raises:
        UserError: a sentence that is no text, or a label other than 0 and 1.
    """
    for number, row in enumerate(rows):
        sentence = get_str(row, "sentence")
        if prompts == "corrected":
            sentence = single_blanks(sentence)
        yield Example(
            id=f"cola/{split}/{number}",
            prompt=PROMPTS[prompts].format(sentence=sentence),
            golds=(label_answer(get_field(row, "label")),),
        )


def extract(generation: str) -> str:
    """Gives yes, no, or "" where the first word is neither."""
    return yes_or_no(generation)
