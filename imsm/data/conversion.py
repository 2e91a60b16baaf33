"""Rows to examples by a task's module, with errors that name the row."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imsm.data.example import Example
from imsm.data.task import TaskModule
from imsm.utils.errors import UserError


def convert_rows(
    module: TaskModule, rows: Iterable[tuple[str, Mapping[str, Any]]], *, split: str, prompt_style: str, name: str
) -> Iterator[Example]:
    """Yield the module's examples of (place for messages, row) pairs; ``name`` is the file or dataset.

    Raises:
        UserError: A row is invalid.
    """
    # the module consumes the rows lazily, so the last row read is the one that failed
    location = "row 1"

    def values() -> Iterator[Mapping[str, Any]]:
        nonlocal location
        for location, row in rows:  # noqa: B007 (used in the messages below)
            yield row

    try:
        yield from module.examples(values(), split=split, prompt_style=prompt_style)
    except UserError as error:
        # errors of reading the rows name their place themselves
        text = str(error)
        raise UserError(text if text.startswith(name) else f"{name}, {location}: {text}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{name}, {location}: is not a record of this dataset ({type(error).__name__}: {error}); "
            "see the sample record in its task module"
        ) from error


def numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield rows with their number as the place."""
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row
