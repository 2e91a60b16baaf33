"""The contents of a plan: memory, downloads and text."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class MemoryItem:
    """One part of a run's memory.

    Attributes:
        name: What the memory is used for.
        size: Bytes; None if unknown.
        basis: What the number is based on.
        exact: Whether it follows from shapes alone; otherwise it is an estimate.
    """

    name: str
    size: int | None
    basis: str
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class DownloadItem:
    """A model or dataset that a run reads.

    Attributes:
        name: Kind and name, e.g. "dataset openai/gsm8k (main)".
        location: Where it is available; None if it must be downloaded.
        size: Approximate bytes; None if unknown.
    """

    name: str
    location: str | None
    size: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do and need.

    Attributes:
        name: Name of the run folder.
        settings: One line of values per configuration group.
        trainable: Trainable parameters of adapter and gate; None if the architecture is unknown.
        notes: Remarks on the numbers.
        memory: Memory items by title; titles of device memory begin with "memory".
        steps: Length of the training, as text.
        evaluation: Number of examples per task, as text.
        downloads: Models and datasets that the run reads.
        start: Lines that explain how to start the run on several machines.
    """

    name: str
    settings: dict[str, str]
    trainable: dict[str, int] | None
    notes: list[str]
    memory: dict[str, list[MemoryItem]]
    steps: str
    evaluation: str
    downloads: list[DownloadItem]
    start: list[str] = field(default_factory=list)


def total(items: Sequence[MemoryItem]) -> int | None:
    """Return the sum of the sizes in bytes, or None if one is unknown."""
    sizes = [item.size for item in items]
    return None if None in sizes else sum(size for size in sizes if size is not None)
