r"""Custom datasets: JSON lines with a prompt and its answer or answers.

Records:
{"input": "Question: Which river runs through Lowmere?\nAnswer:", "output": "the Arvel"}
{"input": "Name a town on the Arvel.\nAnswer:", "output": ["Port Senn", "Lowmere"]}

`input` is the full prompt, used unchanged in both prompt styles. `output` is the answer, or the list
of accepted answers, of which the first is the training target.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.example import Example
from imsm.data.row_validation import get_answers, repr_short
from imsm.utils.errors import UserError

KEYS = ("input", "output")


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per row."""
    del prompt_style  # the rows contain complete prompts
    for number, row in enumerate(rows):
        missing = [key for key in KEYS if key not in row] if isinstance(row, Mapping) else KEYS
        if missing:
            raise UserError(f'{" and ".join(missing)}: missing; a row is an object with the keys "input" and "output"')
        if not isinstance(row["input"], str):
            raise UserError(f"input: must be a string, not {repr_short(row['input'])}")
        output = row["output"]
        golds = get_answers([output] if isinstance(output, str) else output, name="output")
        yield Example(id=f"jsonl/{split}/{number}", prompt=row["input"], golds=golds)


def extract(response: str) -> str:
    """Return the stripped response; set data.stop to end it earlier."""
    return response.strip()
