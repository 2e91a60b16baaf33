"""Reads a row's values: what is not of the type that a dataset has is told, and never scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imsm.utils.errors import UserError


def get_field(row: Any, key: str) -> Any:
    """The value under ``key``.

    Raises:
        UserError: the row is no object, or lacks the key.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{repr_short(row)} stands where an object with the key {key!r} belongs.")
    if key not in row:
        raise UserError(f"{key} is missing; the keys are {', '.join(map(str, row)) or 'none'}.")
    return row[key]


def get_str(row: Any, key: str, *, blank: bool = False) -> str:
    """The text under ``key``; ``blank`` says whether it may be blank.

    Raises:
        UserError: no such key, another type, or a blank text.
    """
    value = get_field(row, key)
    if not isinstance(value, str) or not (blank or value.strip()):
        allowed = "a text" if blank else "a text that is not blank"
        raise UserError(f"{key} must be {allowed}, not {repr_short(value)}.")
    return value


def get_answers(value: Any, *, name: str) -> tuple[str, ...]:
    """A list of accepted answers; a lone text is none, for it would fall into its letters.

    Args:
        value: what the row holds.
        name: its key, for the message.

    Raises:
        UserError: no list, an empty one, or an answer that is not a text or is blank.
    """
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name} must be a list of at least one text, not {repr_short(value)}.")
    for answer in value:
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(f"{name} holds {repr_short(answer)}, where a text that is not blank belongs.")
    return tuple(value)


def repr_short(value: Any) -> str:
    """A value and its type for a message; a long value is cut."""
    if value == []:
        return "an empty list"
    written = repr(value)
    return f"{written[:80]}{'...' if len(written) > 80 else ''} ({type(value).__name__})"
