"""Where rows come from (hub, mirror, miniature, a folder of one's own), and the way to examples."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imsm.data.example import Example
from imsm.data.hub import check_mirror, load_from_hub, load_mirror, read_mirror_fast
from imsm.data.local_files import find_file, read_rows
from imsm.data.task import ROLES, HubDataset, Role, Task, TaskModule, task_module
from imsm.data.tasks import jsonl
from imsm.utils.errors import UserError

Kind = Literal["hub", "mirror", "local", "miniature"]
Prompts = Literal["paper", "corrected"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPTS: tuple[Prompts, ...] = get_args(Prompts)
MINIATURE = Path(__file__).parents[1] / "models" / "backbones" / "miniature" / "hub"
# Which items a limit keeps must not depend on a run's seed: arms and seeds share their items.
LIMIT_SEED = "imsm.limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where a task's rows come from.

    Raises:
        UserError: an unknown kind, or a mirror or folder without its path.
    """

    kind: str
    """hub, mirror, miniature or folder."""
    path: str | None = None
    """The mirror or the folder."""

    def __post_init__(self) -> None:
        """Checks the kind and its path."""
        if self.kind not in KINDS:
            raise UserError(f"data.source={self.kind!r} is unknown. There are {', '.join(KINDS)}.")
        if self.kind in ("mirror", "local") and not self.path:
            raise UserError(f"data.source={self.kind} needs its path: give data.{self.kind}=.")


def load_examples(
    task: Task, role: Role, *, source: DataSource, prompts: str, limit: int | None, library: bool = True
) -> list[Example]:
    """All examples of a role, in the source's order.

    Args:
        task: the dataset.
        role: train or test.
        source: where its rows come from.
        prompts: verbatim (the paper's strings) or corrected.
        limit: keep this many, chosen at random by a fixed seed and left in order, so that all arms
            and seeds see the same; a smaller limit keeps a subset of a larger one's. None: all.
        library: read a mirror by the `datasets` library, which knows all formats; without it only
            what `read_mirror` reads, but seconds sooner.

    Raises:
        UserError: data that is not there, an empty split, a row that is not as it should be, or an
            unknown prompt style.
    """
    if prompts not in PROMPTS:
        raise UserError(f"data.prompt_style={prompts!r} is unknown. There are {', '.join(PROMPTS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"A limit of {limit} examples leaves none: give at least 1, or null.")
    module = jsonl if source.kind == "local" else task_module(task)
    examples: list[Example] = []
    for where, split, rows in _splits(task, role, source, library):
        found = list(_examples(module, rows, split=split, prompts=prompts, where=f"{task.name}, {where}"))
        if not found:
            raise UserError(f"{where} is empty: it holds no example of {task.name}.")
        examples += found
    if len({example.id for example in examples}) < len(examples):
        raise UserError(f"{task.module} gives several examples of {task.name} the same id.")
    return examples if limit is None else _subset(examples, limit)


def check_source(task: Task, *, source: DataSource, roles: Sequence[Role] = ROLES) -> None:
    """Looks whether the source holds the task's splits for these roles; reads no row, no network.

    A role for which the task has no split is passed over.

    Raises:
        UserError: what is not there.
    """
    for role in roles:
        splits = task.splits.get(role)
        if not splits:
            continue
        if source.kind == "local":
            find_file(_folder(source), role=role)
            continue
        hub = _hub(task)
        if source.kind != "hub":
            check_mirror(_mirror(source), hub, splits=splits)


def _splits(
    task: Task, role: Role, source: DataSource, library: bool
) -> Iterator[tuple[str, str, Iterable[Mapping[str, Any]]]]:
    """(how to call it in a message, split, rows) for each of a role's splits."""
    if not task.splits.get(role):
        use = "a forgetting test only" if role == "train" else "for training only"
        raise UserError(f"{task.name} has no {role} split: it is {use}.")
    if source.kind == "local":
        path = find_file(_folder(source), role=role)
        yield str(path), role, read_rows(path)
        return
    hub = _hub(task)
    for split in task.splits[role]:
        if source.kind == "hub":
            yield f"{hub.path}, {split}", split, load_from_hub(hub, split=split)
        else:
            mirror = _mirror(source)
            where = f"{mirror / hub.path}, {split}"
            read = load_mirror if library else read_mirror_fast
            yield where, split, read(mirror, hub, split=split)


def _examples(
    module: TaskModule, rows: Iterable[Mapping[str, Any]], *, split: str, prompts: str, where: str
) -> Iterator[Example]:
    """The module's examples; what goes wrong in a row is told with its place."""
    number = 0

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal number
        for number, row in enumerate(rows, start=1):  # noqa: B007 (told in the message below)
            yield row

    try:
        yield from module.examples(counted(), split=split, prompts=prompts)
    except UserError as error:
        raise UserError(f"{where}, row {number}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{where}, row {number} is not a record of this dataset: "
            f"{type(error).__name__}: {error}. Its task file opens with one."
        ) from error


def _subset(examples: list[Example], limit: int) -> list[Example]:
    order = list(range(len(examples)))
    random.Random(LIMIT_SEED).shuffle(order)
    return [examples[index] for index in sorted(order[:limit])]


def _hub(task: Task) -> HubDataset:
    if task.hub is None:
        raise UserError(
            f"{task.name} is not on the hub: give data.local_dir=<folder with train.jsonl and "
            'test.jsonl>, whose rows are {"input": prompt, "output": answer or list of answers}.'
        )
    return task.hub


def _folder(source: DataSource) -> Path:
    return Path(source.path or "").expanduser()


def _mirror(source: DataSource) -> Path:
    return MINIATURE if source.kind == "miniature" else _folder(source)
