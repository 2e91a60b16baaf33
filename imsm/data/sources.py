"""Data sources (Hub, mirror, miniature, local files) and the examples of a task."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imsm.data.conversion import convert_rows, numbered
from imsm.data.example import Example
from imsm.data.local_examples import chosen_indices, iter_local, load_local, local_file
from imsm.data.mirror import check_mirror, read_mirror
from imsm.data.task import ROLES, HubDataset, Role, Task, task_module
from imsm.utils.errors import UserError

Kind = Literal["hub", "mirror", "local", "miniature"]
PromptStyle = Literal["paper", "corrected"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
MINIATURE = Path(__file__).parents[1] / "models" / "backbones" / "miniature" / "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where the rows of a task come from; ``path`` is the mirror, or the local folder or file.

    ``test_share`` is the share of a local file's rows that is the test set; None: there is a test file.

    Raises:
        UserError: An unknown kind, or a mirror or local source without its path.
    """

    kind: str
    path: str | None = None
    test_share: float | None = None

    def __post_init__(self) -> None:
        """Check kind and path."""
        if self.kind not in KINDS:
            raise UserError(f"data.source={self.kind}: must be one of {', '.join(KINDS)}")
        if self.kind in ("mirror", "local") and not self.path:
            raise UserError(f"data.source={self.kind}: needs a path; set data.{self.kind}_dir")

    @property
    def folder(self) -> Path:
        """Folder of a mirror, of the miniature's mirror, or of local files, or the local file."""
        return MINIATURE if self.kind == "miniature" else Path(self.path or "").expanduser()

    def record(self) -> dict[str, Any]:
        """Return the fields for a run's identity, which omits newer ones at their defaults."""
        values = asdict(self)
        if self.test_share is None:
            del values["test_share"]
        return values


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
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null for all examples")
    if source.kind == "local":
        _check(task, role, prompt_style)
        examples = load_local(
            task, role, path=source.folder, test_share=source.test_share, prompt_style=prompt_style, limit=limit
        )
    else:
        examples = list(iter_examples(task, role, source=source, prompt_style=prompt_style, use_datasets=use_datasets))
    # predictions and caches are keyed by id
    if len({example.id for example in examples}) < len(examples):
        raise UserError(f"data.module={task.module}: several examples of {task.name} have the same id")
    if limit is None or source.kind == "local":
        return examples
    chosen = chosen_indices(len(examples), limit)
    return [example for index, example in enumerate(examples) if index in chosen]


def iter_examples(
    task: Task, role: Role, *, source: DataSource, prompt_style: str, use_datasets: bool = True
) -> Iterator[Example]:
    """Yield all examples of a role; see `load_examples`. Local files are streamed."""
    _check(task, role, prompt_style)
    if source.kind == "local":
        file = local_file(source.folder, role, test_share=source.test_share)
        yield from iter_local(task, role, file=file, test_share=source.test_share, prompt_style=prompt_style)
        return
    module = task_module(task)
    for location, split, rows in _read_splits(task, role, source, use_datasets):
        named, example = f"{task.name}, {location}", None
        for example in convert_rows(module, numbered(rows), split=split, prompt_style=prompt_style, name=named):
            yield example
        if example is None:
            raise UserError(f"{named}: is empty; it has no example of the task")


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
            local_file(source.folder, role, test_share=source.test_share)
            continue
        hub = _hub_of(task)
        if source.kind != "hub":
            check_mirror(source.folder, hub, splits=splits)


def _check(task: Task, role: Role, prompt_style: str) -> None:
    if prompt_style not in PROMPT_STYLES:
        raise UserError(f"data.prompt_style={prompt_style}: must be one of {', '.join(PROMPT_STYLES)}")
    if not task.splits.get(role):
        use = "evaluation" if role == "train" else "training"
        raise UserError(f"data.splits.{role}: {task.name} has none; it is for {use} only")


def _read_splits(
    task: Task, role: Role, source: DataSource, use_datasets: bool
) -> Iterator[tuple[str, str, Iterable[Mapping[str, Any]]]]:
    """Yield (location for messages, split, rows) for each split of a role."""
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


def _hub_of(task: Task) -> HubDataset:
    if task.hub is None:
        raise UserError(
            f"data={task.name}: has no Hub dataset; set data.local_dir to a folder with train.jsonl and test.jsonl"
        )
    return task.hub
