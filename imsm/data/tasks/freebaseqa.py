r"""FreebaseQA: closed-book trivia; a forgetting test.

A record:
{"Question-ID": "FreebaseQA-eval-7", "RawQuestion": "Who wrote the novel \"Salt Roads\"?",
 "ProcessedQuestion": "who wrote the novel \"salt roads\"",
 "Parses": {"Parse-Id": ["FreebaseQA-eval-7.P0"], "TopicEntityName": ["salt roads"], ...,
            "Answers": [{"AnswersMid": ["m.0x"], "AnswersName": [["ann peck"]]}]}}

In the JSON release Parses is a list of records and AnswersName a flat list: both are read. The
paper's gold is the first parse's first answer; the others are accepted as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import first_line, single_blanks
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str, repr_short
from imsm.utils.errors import UserError

PROMPTS = {
    # No blank after "Question:", unlike WebQ's: the paper's.
    "paper": (
        "Please provide a concise answer to the following question using one or a few words."
        "\nQuestion:{question}?\nAnswer:"
    ),
    "corrected": (
        "Please provide a concise answer to the following question using one or a few words."
        "\nQuestion: {question}?\nAnswer:"
    ),
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per question.

    Raises:
        UserError: a question that is no text, or parses without a list of answers' names.
    """
    for number, row in enumerate(rows):
        question = get_str(row, "RawQuestion")
        if prompts == "paper":
            question = question.replace('"', "").replace("?", "")
        else:
            question = single_blanks(question).rstrip("? ")
        yield Example(
            id=f"freebaseqa/{split}/{number}",
            prompt=PROMPTS[prompts].format(question=question),
            golds=_answers(get_field(row, "Parses")),
        )


def extract(generation: str) -> str:
    """The first line that is not blank."""
    return first_line(generation)


def _answers(parses: Any) -> tuple[str, ...]:
    """All answers' names in order, lower case, each once."""
    if isinstance(parses, Mapping):
        per_parse = get_field(parses, "Answers")
    else:
        per_parse = [get_field(parse, "Answers") for parse in _list(parses)]
    names = [name for answers in _list(per_parse) for name in _names(answers)]
    return tuple(dict.fromkeys(name.lower() for name in get_answers(names, name="AnswersName")))


def _names(node: Any) -> Iterator[str]:
    """The strings under AnswersName, whatever the depth of lists around and in it."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        yield from _names(get_field(node, "AnswersName"))
    else:
        for item in _list(node):
            yield from _names(item)


def _list(node: Any) -> list[Any]:
    if not isinstance(node, list):
        raise UserError(f"Parses holds {repr_short(node)}, where a list belongs.")
    return node
