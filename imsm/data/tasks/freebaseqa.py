r"""FreebaseQA: closed-book trivia questions; a forgetting test.

A record:
{"Question-ID": "FreebaseQA-eval-7", "RawQuestion": "Who wrote the novel \"Salt Roads\"?",
 "ProcessedQuestion": "who wrote the novel \"salt roads\"",
 "Parses": {"Parse-Id": ["FreebaseQA-eval-7.P0"], "TopicEntityName": ["salt roads"], ...,
            "Answers": [{"AnswersMid": ["m.0x"], "AnswersName": [["ann peck"]]}]}}

In the JSON release Parses is a list of records and AnswersName a flat list; both forms are read.
The paper's gold answer is the first one of the first parse; the others are accepted as well.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.answer_text import collapse_spaces, first_line
from imsm.data.example import Example
from imsm.data.row_validation import get_answers, get_field, get_str, repr_short
from imsm.utils.errors import UserError

_INSTRUCTION = "Please provide a concise answer to the following question using one or a few words."
PROMPTS = {
    # the paper has no space after "Question:", unlike in WebQ
    "paper": _INSTRUCTION + "\nQuestion:{question}?\nAnswer:",
    "corrected": _INSTRUCTION + "\nQuestion: {question}?\nAnswer:",
}


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per question."""
    for number, row in enumerate(rows):
        question = get_str(row, "RawQuestion")
        if prompt_style == "paper":
            question = question.replace('"', "").replace("?", "")
        else:
            question = collapse_spaces(question).rstrip("? ")
        yield Example(
            id=f"freebaseqa/{split}/{number}",
            prompt=PROMPTS[prompt_style].format(question=question),
            golds=_answers(get_field(row, "Parses")),
        )


extract = first_line


def _answers(parses: Any) -> tuple[str, ...]:
    """Return the distinct answer names in order, in lower case."""
    if isinstance(parses, Mapping):
        per_parse = get_field(parses, "Answers")
    else:
        per_parse = [get_field(parse, "Answers") for parse in _list(parses)]
    names = [name for answers in _list(per_parse) for name in _names(answers)]
    return tuple(dict.fromkeys(name.lower() for name in get_answers(names, name="AnswersName")))


def _names(node: Any) -> Iterator[str]:
    """Yield the strings under AnswersName at any depth of nested lists."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        yield from _names(get_field(node, "AnswersName"))
    else:
        for item in _list(node):
            yield from _names(item)


def _list(node: Any) -> list[Any]:
    if not isinstance(node, list):
        raise UserError(f"Parses: must contain a list, not {repr_short(node)}")
    return node
