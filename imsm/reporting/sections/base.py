"""A part of a report card: a text, a table of texts, pictures, texts on shades."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib import figure


@dataclass(kw_only=True)
class ReportFigure:
    """A figure that is drawn when it is asked for; ``alt`` says what it shows."""

    name: str
    alt: str
    draw: Callable[[], figure.Figure]


@dataclass(kw_only=True)
class TokenHeatmap:
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
    terminal_columns: list[str] = field(default_factory=list)
    """The columns that a terminal shows; none: it does not show this part."""
    first_numeric_column: int = 1
    """From which column on the table's cells are numbers."""
    pictures: list[ReportFigure] = field(default_factory=list)
    heatmaps: list[TokenHeatmap] = field(default_factory=list)


def table_section(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, str]],
    lines: list[str],
    numbers: int,
    pictures: list[ReportFigure],
) -> Section | None:
    """A part with a table; None if it has no row."""
    import pandas

    if not rows:
        return None
    table = pandas.DataFrame(rows).fillna("–")
    return Section(name=name, title=title, lines=lines, table=table, first_numeric_column=numbers, pictures=pictures)
