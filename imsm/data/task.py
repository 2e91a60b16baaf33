"""What a dataset's yaml says about it, and the module that knows its records."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from imsm.data.example import Example
from imsm.errors import UserError

Role = Literal["train", "test"]
ROLES: tuple[Role, ...] = ("train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The values of one `conf/data/<name>.yaml`, field by field."""

    name: str
    module: str
    """Dotted name of the module that knows the records: see `TaskModule`."""
    hub: dict[str, str | None] | None
    """The dataset on the hub: path, name (its configuration), revision. None: own files only."""
    splits: dict[str, list[str]]
    """Role (train, test) to the source's splits, in order. No split: no such role."""
    metrics: list[str]
    """Names in conf/metric; the first is the headline."""
    max_prompt_tokens: int
    max_new_tokens: int
    stop: str | None
    """Regular expression on the generated text; generation stops as soon as it matches."""


class TaskModule(Protocol):
    """What a task's module offers."""

    def examples(
        self, rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str
    ) -> Iterator[Example]:
        """Turns the rows of one split into examples; prompts is "verbatim" or "corrected"."""
        ...

    def extract(self, generation: str) -> str:
        """The answer in a generated text, "" where there is none."""
        ...


def build_task(values: Mapping[str, Any]) -> Task:
    """Checks the values of a data yaml and makes a Task of them.

    Raises:
        UserError: naming every wrong key or value at once.
    """
    fields = [field.name for field in dataclasses.fields(Task)]
    name = values.get("name", "?")
    problems = [f"{key} is missing" for key in fields if key not in values]
    problems += [f"{key} is unknown" for key in values if key not in fields]
    if not problems:
        problems = _wrong_values(values)
    if problems:
        raise UserError(
            f"The task {name!r} is not well described: {'; '.join(problems)}. "
            f"A data yaml holds exactly: {', '.join(fields)}."
        )
    return Task(**values)


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


def _wrong_values(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in ("max_prompt_tokens", "max_new_tokens"):
        if type(values[key]) is not int or values[key] < 1:
            problems.append(f"{key}={values[key]!r} must be a whole number of at least 1")
    for key in ("name", "module"):
        if not isinstance(values[key], str) or not values[key]:
            problems.append(f"{key}={values[key]!r} must be a text")
    if not _is_texts(values["metrics"]) or not values["metrics"]:
        problems.append(f"metrics={values['metrics']!r} must list at least one name")
    if values["stop"] is not None:
        try:
            re.compile(values["stop"])
        except (re.error, TypeError) as error:
            problems.append(f"stop={values['stop']!r} is no regular expression ({error})")
    return problems + _wrong_hub(values["hub"]) + _wrong_splits(values["splits"])


def _wrong_hub(hub: Any) -> list[str]:
    if hub is None:
        return []
    if not isinstance(hub, dict) or set(hub) != {"path", "name", "revision"}:
        return [f"hub={hub!r} must hold path, name and revision, or be null"]
    if not isinstance(hub["path"], str) or not hub["path"]:
        return [f"hub.path={hub['path']!r} must be a text"]
    return []


def _wrong_splits(splits: Any) -> list[str]:
    well_formed = isinstance(splits, dict) and all(_is_texts(value) for value in splits.values())
    if not well_formed or set(splits) != set(ROLES) or not any(splits.values()):
        return [f"splits={splits!r} must give train and test a list of splits each (one may be [])"]
    return []


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
