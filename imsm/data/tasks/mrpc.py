"""MRPC (GLUE): do two sentences say the same? Target and forgetting test.

A record:
{"sentence1": "The ferry sank late on Monday , the harbour office said .",
 "sentence2": "A harbour official said that the ferry went down on Monday night .",
 "label": 1, "idx": 12}

label: 1 equivalent, 0 not. The text is tokenised ("Monday ,") and stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import label_answer, single_blanks, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

PROMPTS = {
    # "Ouput" is the paper's.
    "paper": (
        "Determine if the following two sentences are semantically equivalent and output yes or no."
        "\nSentence1: {sentence1}\nSentence2: {sentence2}\nOuput:"
    ),
    "corrected": (
        "Determine if the following two sentences are semantically equivalent and output yes or no."
        "\nSentence1: {sentence1}\nSentence2: {sentence2}\nOutput:"
    ),
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per pair of sentences.

    Raises:
        UserError: a sentence that is no text, or a label other than 0 and 1.
    """
    for number, row in enumerate(rows):
        pair = {key: get_str(row, key) for key in ("sentence1", "sentence2")}
        if prompts == "corrected":
            pair = {key: single_blanks(text) for key, text in pair.items()}
        yield Example(
            id=f"mrpc/{split}/{number}",
            prompt=PROMPTS[prompts].format(**pair),
            golds=(label_answer(get_field(row, "label")),),
        )


def extract(generation: str) -> str:
    """Gives yes, no, or "" where the first word is neither."""
    return yes_or_no(generation)
