r"""Custom datasets: rows with a complete prompt and its answer, in one of the formats of `imsm.data.row_formats`.

Records:
{"input": "Question: Which river runs through Lowmere?\nAnswer:", "output": "the Arvel"}
{"input": "Name a town on the Arvel.\nAnswer:", "output": ["Port Senn", "Lowmere"]}

The prompt is the same in both prompt styles. Of several accepted answers, the first is the training target.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.example import Example
from imsm.data.row_formats import require_format


def examples(rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
    """Yield one example per row."""
    del prompt_style  # the rows contain complete prompts
    row_format = None
    for number, row in enumerate(rows):
        row_format = require_format(row, row_format)
        prompt, golds, turns = row_format.read(row)
        yield Example(id=f"jsonl/{split}/{number}", prompt=prompt, golds=golds, turns=turns)


def extract(response: str) -> str:
    """Return the stripped response; set data.stop to end it earlier."""
    return response.strip()
