"""The shipped data of the miniature as the package loads it."""

from __future__ import annotations

from imsm.data.example import Example
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Role
from tests.data.shipped import shipped_task

MINIATURE = DataSource(kind="miniature")
TRAINED = ("mrpc", "cola", "ropes", "gsm8k")
TESTED = (*TRAINED, "webq", "freebaseqa", "multirc")


def examples_of(task: str, role: Role, *, prompts: str = "paper") -> list[Example]:
    return load_examples(shipped_task(task), role, source=MINIATURE, prompt_style=prompts, limit=None)
