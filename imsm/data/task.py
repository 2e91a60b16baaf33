"""A dataset's task: the values of its yaml, and the module that reads its rows."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Protocol, cast

from pydantic import Field, field_validator

from imsm.data.example import Example
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count
from imsm.utils.strict_model import PathName, StrictModel, Text
from imsm.utils.trust import TASKS, import_trusted_module

Role = Literal["train", "test"]
ROLES: tuple[Role, ...] = ("train", "test")
MeanAndMax = Annotated[list[Count], Field(min_length=2, max_length=2)]


class HubDataset(StrictModel):
    """A dataset on the Hugging Face Hub; ``name`` is its configuration."""

    path: Text
    name: str | None
    revision: str | None


class SplitStats(StrictModel):
    """Number of examples in a split, and mean and maximum lengths in tokens (with end of text)."""

    examples: Count
    prompt: MeanAndMax
    answer: MeanAndMax


class DatasetStats(StrictModel):
    """Known sizes of a dataset, for `mode=plan`."""

    megabytes: Count
    train: SplitStats | None = None
    test: SplitStats | None = None


class Task(StrictModel):
    """The values of one `conf/data/<name>.yaml`."""

    name: PathName
    module: Text
    """Dotted name of a module with the functions of `TaskModule`."""
    hub: HubDataset | None
    """None: the data is read from local files only."""
    splits: dict[Role, list[Text]]
    """The dataset's splits per role; a missing or empty list: the task lacks that role."""
    metrics: list[Text] = Field(min_length=1)
    """Names in conf/metric, computed on extracted answers; the first is the main metric."""
    paper_code_metrics: list[Text] = Field(default=[])
    """Metrics of evaluation.protocol=paper_code, computed on raw responses."""
    max_prompt_tokens: Count
    max_new_tokens: Count
    stop: str | None
    """Regular expression; generation stops once the response matches it."""
    task_type: Literal[0, 1] = 0
    """Used by LoRAMoE's balancing loss: 1 for closed-book questions, 0 for all others."""
    stats: DatasetStats | None = None

    @field_validator("stop")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from error
        return value


class TaskModule(Protocol):
    """The functions of a task's module."""

    def examples(self, rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str) -> Iterator[Example]:
        """Convert the rows of one split; ``prompt_style`` is "paper" or "corrected".

        Raises:
            UserError: A row lacks a value, or has one of another type or a hidden label.
        """
        ...

    def extract(self, response: str) -> str:
        """Return the answer in a response, "" if there is none."""
        ...


def task_module(task: Task) -> TaskModule:
    """Import a task's module.

    Raises:
        UserError: The module is not trusted, cannot be imported, or lacks `examples` or `extract`.
    """
    module = import_trusted_module(task.module, within=TASKS, key="data.module")
    missing = [name for name in ("examples", "extract") if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"data.module={task.module}: has no {' and no '.join(missing)}; define "
            "examples(rows, *, split, prompt_style) and extract(response)"
        )
    return cast(TaskModule, module)
