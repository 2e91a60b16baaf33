"""Data sources (Hub, mirror, miniature, local files) and the examples of a task."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imsm.data.example import Example
from imsm.data.local_files import find_file, read_rows
from imsm.data.mirror import check_mirror, read_mirror
from imsm.data.task import ROLES, HubDataset, Role, Task, TaskModule, task_module
from imsm.data.tasks import jsonl
from imsm.utils.errors import UserError

Kind = Literal["hub", "mirror", "local", "miniature"]
PromptStyle = Literal["paper", "corrected"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
MINIATURE = Path(__file__).parents[1] / "models" / "backbones" / "miniature" / "hub"
LIMIT_SEED = "imsm.limit"
"""Independent of the run's seed: all methods and seeds use the same examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where the rows of a task come from; ``path`` is the mirror or the local folder.

    Raises:
        UserError: An unknown kind, or a mirror or local source without its path.
    """

    kind: str
    path: str | None = None

    def __post_init__(self) -> None:
        """Check kind and path."""
        if self.kind not in KINDS:
            raise UserError(f"data.source={self.kind}: must be one of {', '.join(KINDS)}")
        if self.kind in ("mirror", "local") and not self.path:
            raise UserError(f"data.source={self.kind}: needs a path; set data.{self.kind}_dir")

    @property
    def folder(self) -> Path:
        """Folder of a mirror, of the miniature's mirror, or of local files."""
        return MINIATURE if self.kind == "miniature" else Path(self.path or "").expanduser()


def load_examples(
    task: Task, role: Role, *, source: DataSource, prompt_style: str, limit: int | None, use_datasets: bool = True
) -> list[Example]:
    """Return the examples of a role in the source's order.

    ``prompt_style`` is "paper" (its exact strings) or "corrected". ``limit`` examples are sampled with
    a fixed seed; None keeps all. ``use_datasets=False`` reads a mirror with `read_mirror`, which
    starts seconds faster than the `datasets` library but supports fewer formats.

    Raises:
        UserError: Missing data, an empty split, an invalid row or an unknown prompt style.
    """
    if prompt_style not in PROMPT_STYLES:
        raise UserError(f"data.prompt_style={prompt_style}: must be one of {', '.join(PROMPT_STYLES)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null for all examples")
    module = jsonl if source.kind == "local" else task_module(task)
    examples: list[Example] = []
    for location, split, rows in _read_splits(task, role, source, use_datasets):
        named = f"{task.name}, {location}"
        found = list(_convert(module, rows, split=split, prompt_style=prompt_style, location=named))
        if not found:
            raise UserError(f"{named}: is empty; it has no example of the task")
        examples += found
    # predictions and caches are keyed by id
    if len({example.id for example in examples}) < len(examples):
        raise UserError(f"data.module={task.module}: several examples of {task.name} have the same id")
    if limit is None:
        return examples
    # a prefix of one permutation: a smaller limit keeps a subset of a larger one's
    order = list(range(len(examples)))
    random.Random(LIMIT_SEED).shuffle(order)
    return [examples[index] for index in sorted(order[:limit])]


def check_source(task: Task, *, source: DataSource, roles: Sequence[Role] = ROLES) -> None:
    """Check that a source has the task's splits, without reading rows or using the network.

    Roles without a split in the task are skipped.

    Raises:
        UserError: A file or split is missing.
    """
    for role in roles:
        splits = task.splits.get(role)
        if not splits:
            continue
        if source.kind == "local":
            find_file(source.folder, role=role)
            continue
        hub = _hub_of(task)
        if source.kind != "hub":
            check_mirror(source.folder, hub, splits=splits)


def _read_splits(
    task: Task, role: Role, source: DataSource, use_datasets: bool
) -> Iterator[tuple[str, str, Iterable[Mapping[str, Any]]]]:
    """Yield (location for messages, split, rows) for each split of a role."""
    if not task.splits.get(role):
        use = "evaluation" if role == "train" else "training"
        raise UserError(f"data.splits.{role}: {task.name} has none; it is for {use} only")
    if source.kind == "local":
        path = find_file(source.folder, role=role)
        yield str(path), role, read_rows(path)
        return
    hub = _hub_of(task)
    for split in task.splits[role]:
        location = f"{hub.path if source.kind == 'hub' else source.folder / hub.path}, {split}"
        if source.kind != "hub" and not use_datasets:
            yield location, split, read_mirror(source.folder, hub, split=split)
            continue
        from imsm.data.hub import load_from_hub, load_mirror  # `datasets` takes seconds to import

        if source.kind == "hub":
            yield location, split, load_from_hub(hub, split=split)
        else:
            yield location, split, load_mirror(source.folder, hub, split=split)


def _convert(
    module: TaskModule, rows: Iterable[Mapping[str, Any]], *, split: str, prompt_style: str, location: str
) -> Iterator[Example]:
    """Yield the module's examples; errors name the row."""
    # the module consumes the rows lazily, so the last row read is the one that failed
    number = 0

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal number
        for number, row in enumerate(rows, start=1):  # noqa: B007 (used in the messages below)
            yield row

    try:
        yield from module.examples(counted(), split=split, prompt_style=prompt_style)
    except UserError as error:
        raise UserError(f"{location}, row {number}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{location}, row {number}: is not a record of this dataset ({type(error).__name__}: {error}); "
            "see the sample record in its task module"
        ) from error


def _hub_of(task: Task) -> HubDataset:
    if task.hub is None:
        raise UserError(
            f"data={task.name}: has no Hub dataset; set data.local_dir to a folder with train.jsonl and "
            'test.jsonl of {"input": prompt, "output": answer or list of answers}'
        )
    return task.hub
