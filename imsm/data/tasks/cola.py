"""CoLA (GLUE): is a sentence grammatical?

A record:
{"sentence": "The kettle that she wondered whether boiled was red.", "label": 0, "idx": 41}

label: 1 acceptable, 0 not. The labels of the test split are hidden, so validation is used.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, label_to_answer, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

_INSTRUCTION = "Given a sentence, judge the grammatical acceptability of the sentence with yes or no."
PROMPTS = {
    # the space at the start and the missing one after "Sentence:" are in the paper
    "paper": " " + _INSTRUCTION + "\nSentence:{sentence}\nOutput:",
    "corrected": _INSTRUCTION + "\nSentence: {sentence}\nOutput:",
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per sentence."""
    for number, row in enumerate(rows):
        sentence = get_str(row, "sentence")
        if prompt_style == "corrected":
            sentence = collapse_spaces(sentence)
        yield Example(
            id=f"cola/{split}/{number}",
            prompt=PROMPTS[prompt_style].format(sentence=sentence),
            golds=(label_to_answer(get_field(row, "label")),),
        )


extract = yes_or_no
