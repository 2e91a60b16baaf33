r"""A dataset of one's own: JSON lines with a prompt and its answer or answers.

Records:
{"input": "Question: Which river runs through Lowmere?\nAnswer:", "output": "the Arvel"}
{"input": "Name a town on the Arvel.\nAnswer:", "output": ["Port Senn", "Lowmere"]}

`input` is the whole prompt, used as it is under both prompt styles. `output` is the answer, or the
list of all accepted answers, of which training teaches the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.example import Example
from imsm.utils.errors import UserError

KEYS = ("input", "output")


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
    """One example per row.

    Raises:
        UserError: a row without the two keys, or with a value of another type.
    """
    del prompts  # the rows hold whole prompts
    for number, row in enumerate(rows):
        lacking = [key for key in KEYS if key not in row] if isinstance(row, Mapping) else KEYS
        if lacking:
            raise UserError(
                f'{" and ".join(lacking)} missing: every row is an object with the keys "input" and "output".'
            )
        if not isinstance(row["input"], str):
            raise UserError(f"input must be a text, not {_shown(row['input'])}.")
        yield Example(id=f"jsonl/{split}/{number}", prompt=row["input"], golds=_golds(row["output"]))


def extract(generation: str) -> str:
    """The whole text without outer blanks: set data.stop to keep less of it."""
    return generation.strip()


def _golds(output: Any) -> tuple[str, ...]:
    golds = [output] if isinstance(output, str) else output
    if not isinstance(golds, list) or not golds:
        raise UserError(f"output must be a text or a list of texts, not {_shown(output)}.")
    for gold in golds:
        if not isinstance(gold, str) or not gold.strip():
            raise UserError(f"output holds {_shown(gold)}, where a text that is not blank belongs.")
    return tuple(golds)


def _shown(value: Any) -> str:
    if value == []:
        return "an empty list"
    return f"{value!r} ({type(value).__name__})"
