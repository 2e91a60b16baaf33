"""Runs without the figures of their reports, which take most of the time of a tiny run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from imsm.reporting.render.document import Section
from imsm.utils.files import write_atomic


@contextmanager
def no_figures() -> Iterator[None]:
    """Write empty figures: the tests of the report draw them."""

    def write_empty(folder: Path, sections: Sequence[Section]) -> dict[str, bytes]:
        directory = folder / "figures"
        directory.mkdir(exist_ok=True)
        names = [figure.name for section in sections for figure in section.figures]
        for name in names:
            write_atomic(directory / f"{name}.png", b"")
        return dict.fromkeys(names, b"")

    with mock.patch("imsm.reporting.report.write_figures", write_empty):
        yield
