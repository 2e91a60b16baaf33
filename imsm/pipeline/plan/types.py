"""The contents of a plan: memory, downloads and text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from imsm.utils.json_files import format_json


@dataclass(frozen=True, kw_only=True)
class MemoryItem:
    """One part of a run's memory."""

    name: str  # what the memory is used for
    size: int | None  # bytes; None if unknown
    basis: str  # what the number is based on
    exact: bool = False  # whether it follows from shapes alone; otherwise it is an estimate


@dataclass(frozen=True, kw_only=True)
class DownloadItem:
    """A model or dataset that a run reads."""

    name: str  # kind and name, e.g. "dataset openai/gsm8k (main)"
    location: str | None  # where it is available; None if it must be downloaded
    size: float | None = None  # approximate bytes; None if unknown


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do and need."""

    name: str  # name of the run folder
    settings: dict[str, str]  # one line of values per configuration group
    trainable: dict[str, int] | None  # trainable parameters of adapter and gate; None if the architecture is unknown
    notes: list[str]  # remarks on the numbers
    memory: dict[str, list[MemoryItem]]  # memory items by title; titles of device memory begin with "memory"
    steps: str  # length of the training, as text
    evaluation: str  # number of examples per task, as text
    downloads: list[DownloadItem]  # models and datasets that the run reads
    time: str = "unknown: the architecture is unknown"  # estimated duration, as text
    placement: str | None = None  # GPUs of such runs in a sweep or table, as text; None without several GPUs
    start: list[str] = field(default_factory=list)  # lines that explain how to start the run on several machines

    def to_json(self) -> str:
        """Return all values as one line of JSON, sizes in bytes."""
        return format_json(asdict(self))


def total(items: Sequence[MemoryItem]) -> int | None:
    """Return the sum of the sizes in bytes, or None if one is unknown."""
    sizes = [item.size for item in items]
    return None if None in sizes else sum(size for size in sizes if size is not None)
