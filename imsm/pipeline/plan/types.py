"""What a plan says, as values: parameters, memory, steps, downloads."""

from __future__ import annotations

from dataclasses import dataclass, field

from imsm.pipeline.plan.downloads import DownloadItem


@dataclass(frozen=True, kw_only=True)
class MemoryItem:
    """One part of a run's memory.

    Attributes:
        name: what takes the memory.
        size: bytes; None: not known.
        how: what the number rests on.
        exact: whether it follows from shapes alone; otherwise it is an estimate.
    """

    name: str
    size: int | None
    how: str
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is not begun.

    Attributes:
        name: of the run's folder.
        settings: group to a line of its values.
        counts: trainable parameters of adapter and gate; None: the architecture is not known.
        notes: what to know beside the numbers, a line each.
        memory: title to its parts; titles of memory that is taken at once begin with "memory".
        steps: the training's length, in words.
        items: what is asked, in words.
        needed: what the run needs from elsewhere.
        start: how it is started on several machines, a line each.
    """

    name: str
    settings: dict[str, str]
    counts: dict[str, int] | None
    notes: list[str]
    memory: dict[str, list[MemoryItem]]
    steps: str
    items: str
    needed: list[DownloadItem]
    start: list[str] = field(default_factory=list)


def total(parts: list[MemoryItem]) -> int | None:
    """Their bytes together; None if one of them is not known."""
    sizes = [part.size for part in parts]
    return None if None in sizes else sum(size for size in sizes if size is not None)
