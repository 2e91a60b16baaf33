"""What a dataset's yaml says about it, and the module that knows its records."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

from imsm.data.example import Example
from imsm.utils.errors import UserError

Role = Literal["train", "test"]
ROLES: tuple[Role, ...] = ("train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The values of one `conf/data/<name>.yaml`, field by field (checked by imsm.config.schema)."""

    name: str
    module: str
    """Dotted name of the module that knows the records: see `TaskModule`."""
    hub: dict[str, str | None] | None
    """The dataset on the hub: path, name (its configuration), revision. None: own files only."""
    splits: dict[str, list[str]]
    """Role (train, test) to the source's splits, in order. None or []: no such role."""
    metrics: list[str]
    """Names in conf/metric; the first is the headline. They score the extracted answers."""
    max_prompt_tokens: int
    max_new_tokens: int
    stop: str | None
    """Regular expression on the generated text; generation stops as soon as it matches."""
    paper_code_metrics: list[str] = field(default_factory=list)
    """Of the released code's protocol, likewise; they score the raw answers. []: it has none."""
    task_type: int = 0
    """For methods that tell task types apart: 1 closed-book questions, 0 all others."""


class TaskModule(Protocol):
    """What a task's module offers."""

    def examples(self, rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str) -> Iterator[Example]:
        """Turns the rows of one split into examples; prompts is "paper" or "corrected"."""
        ...

    def extract(self, generation: str) -> str:
        """The answer in a generated text, "" where there is none."""
        ...


def task_module(task: Task) -> TaskModule:
    """Imports the task's module.

    Raises:
        UserError: the module cannot be found, or lacks `examples` or `extract`.
    """
    try:
        module = importlib.import_module(task.module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.module={task.module}: {error}. Give the dotted name of a module that can be "
            "imported, e.g. imsm.data.tasks.mrpc, or my_task for my_task.py on the PYTHONPATH."
        ) from error
    lacking = [name for name in ("examples", "extract") if not hasattr(module, name)]
    if lacking:
        raise UserError(
            f"data.module={task.module} lacks {' and '.join(lacking)}. A task's module offers "
            "examples(rows, *, split, prompts) and extract(generation)."
        )
    return cast(TaskModule, module)
