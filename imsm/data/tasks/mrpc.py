"""MRPC (GLUE): are two sentences paraphrases? Target and forgetting test.

A record:
{"sentence1": "The ferry sank late on Monday , the harbour office said .",
 "sentence2": "A harbour official said that the ferry went down on Monday night .",
 "label": 1, "idx": 12}

label: 1 equivalent, 0 not. The tokenized text ("Monday ,") is used unchanged.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, label_to_answer, yes_or_no
from imsm.data.example import Example
from imsm.data.row_validation import get_field, get_str

_INSTRUCTION = "Determine if the following two sentences are semantically equivalent and output yes or no."
PROMPTS = {
    # "Ouput" is in the paper
    "paper": _INSTRUCTION + "\nSentence1: {sentence1}\nSentence2: {sentence2}\nOuput:",
    "corrected": _INSTRUCTION + "\nSentence1: {sentence1}\nSentence2: {sentence2}\nOutput:",
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per pair of sentences."""
    for number, row in enumerate(rows):
        pair = {key: get_str(row, key) for key in ("sentence1", "sentence2")}
        if prompt_style == "corrected":
            pair = {key: collapse_spaces(text) for key, text in pair.items()}
        yield Example(
            id=f"mrpc/{split}/{number}",
            prompt=PROMPTS[prompt_style].format(**pair),
            golds=(label_to_answer(get_field(row, "label")),),
        )


extract = yes_or_no
