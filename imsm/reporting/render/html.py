"""The report card as one page, `report.html`: its pictures inside, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.utils.files import write_atomic

if TYPE_CHECKING:
    import pandas

    from imsm.reporting.sections.base import Section, TokenHeatmap

_DOTS = 130
"""Per inch, of the pictures."""


@dataclass(frozen=True, kw_only=True)
class ShadedToken:
    """A piece of text on its shade: from white (the original's weight is least here) to full."""

    text: str
    weight: str
    shade: str


def write_pictures(folder: Path, sections: Sequence[Section]) -> dict[str, bytes]:
    """Draw every picture into ``folder/figures/<name>.png``.

    Returns:
        The PNGs by name.

    Raises:
        OSError: the folder cannot be written.
    """
    made = {}
    for section in sections:
        for picture in section.pictures:
            stream = io.BytesIO()
            # no date, no version: the same numbers give the same file
            picture.draw().savefig(stream, format="png", dpi=_DOTS, metadata={"Software": None, "Title": picture.alt})
            made[picture.name] = stream.getvalue()
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    for name, data in made.items():
        unfinished = place / f"{name}.png.tmp"
        unfinished.write_bytes(data)
        unfinished.replace(place / f"{name}.png")
    return made


def write_tables(folder: Path, sections: Sequence[Section]) -> None:
    """Every section's table as ``folder/tables/<name>.csv``.

    Raises:
        OSError: the folder cannot be written.
    """
    place = folder / "tables"
    place.mkdir(exist_ok=True)
    for section in sections:
        if section.table is not None:
            write_atomic(place / f"{section.name}.csv", section.table.to_csv(index=False))


def render_page(
    *,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    sections: Sequence[Section],
    pictures: dict[str, bytes],
    provenance: Sequence[str],
) -> str:
    """The page's HTML; every text in it is escaped.

    Args:
        title: of the run.
        subtitle: what was run.
        notes: on the scores.
        sections: of the card.
        pictures: PNGs by name.
        provenance: on what the numbers rest, a line each.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("imsm.reporting.render", ""), autoescape=True, undefined=StrictUndefined
    )
    shown: list[dict[str, Any]] = [
        {
            "title": section.title,
            "name": section.name,
            "lines": section.lines,
            "table": None if section.table is None else _cells(section.table, section.first_numeric_column),
            "pictures": [
                {"alt": each.alt, "data": base64.b64encode(pictures[each.name]).decode()} for each in section.pictures
            ],
            "heat": [{"title": text.title, "tokens": _tokens(text)} for text in section.heatmaps],
        }
        for section in sections
    ]
    return environment.get_template("report.html.jinja").render(
        title=title, subtitle=subtitle, notes=notes, sections=shown, provenance=provenance
    )


def _cells(table: pandas.DataFrame, numbers: int) -> dict[str, Any]:
    return {
        "names": [str(name) for name in table.columns],
        "rows": table.astype(str).to_numpy().tolist(),
        "numbers": numbers,
    }


def _tokens(text: TokenHeatmap) -> list[ShadedToken]:
    """Shades over the text's own range: what differs within it is what a reader looks for."""
    low, high = min(text.weights), max(text.weights)
    width = (high - low) or 1.0
    return [
        ShadedToken(
            text=piece.replace("\n", "⏎\n") or "∅",
            weight=f"{weight:.3f}",
            shade=f"{0.05 + 0.6 * (weight - low) / width:.2f}",
        )
        for piece, weight in zip(text.pieces, text.weights, strict=True)
    ]
