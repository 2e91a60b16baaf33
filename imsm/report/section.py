"""A part of a report card: a text, a table of texts, pictures, texts on shades."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(kw_only=True)
class Picture:
    """A figure that is drawn when it is asked for; ``alt`` says what it shows."""

    name: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(kw_only=True)
class HeatText:
    """A generated text with the original memory's weight at each token."""

    title: str
    pieces: list[str]
    weights: list[float]


@dataclass(kw_only=True)
class Section:
    """A titled part of the card. ``table``: cells as texts; ``name`` is that of its CSV file."""

    name: str
    title: str
    lines: list[str] = field(default_factory=list)
    table: pandas.DataFrame | None = None
    brief: list[str] = field(default_factory=list)
    """The columns that a terminal shows; none: it does not show this part."""
    numbers: int = 1
    """From which column on the table's cells are numbers."""
    pictures: list[Picture] = field(default_factory=list)
    heat: list[HeatText] = field(default_factory=list)


def table_section(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, str]],
    lines: list[str],
    numbers: int,
    pictures: list[Picture],
) -> Section | None:
    """A part with a table; None if it has no row."""
    import pandas

    if not rows:
        return None
    table = pandas.DataFrame(rows).fillna("–")
    return Section(
        name=name, title=title, lines=lines, table=table, numbers=numbers, pictures=pictures
    )
