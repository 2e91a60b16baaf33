"""Typed access to the values of a dataset row; a wrong type raises UserError."""

from collections.abc import Mapping
from typing import Any

from imsm.utils.errors import UserError


def get_field(row: Any, key: str) -> Any:
    """Return the value of ``key``.

    Raises:
        UserError: The row is not a mapping, or has no such key.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"must be an object with the key {key!r}, not {repr_short(row)}")
    if key not in row:
        raise UserError(f"{key}: is missing; the keys are {', '.join(map(str, row)) or 'none'}")
    return row[key]


def get_str(row: Any, key: str, *, allow_blank: bool = False) -> str:
    """Return the string of ``key``.

    Raises:
        UserError: The key is missing, or the value is not a string, blank, or has half of a character.
    """
    value = get_field(row, key)
    if not isinstance(value, str) or not (allow_blank or value.strip()):
        expected = "a string" if allow_blank else "a non-blank string"
        raise UserError(f"{key}: must be {expected}, not {repr_short(value)}")
    _check_characters(value, name=key)
    return value


def get_answers(value: Any, *, name: str) -> tuple[str, ...]:
    """Return a list of accepted answers as a tuple; ``name`` is the key for messages.

    Raises:
        UserError: The value is not a list, is empty, or contains a blank or another type.
    """
    # a string is a sequence too, and tuple() would split it into characters
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name}: must be a list of at least one string, not {repr_short(value)}")
    for answer in value:
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(f"{name}: must contain non-blank strings, not {repr_short(answer)}")
        _check_characters(answer, name=name)
    return tuple(value)


def _check_characters(text: str, *, name: str) -> None:
    # an escape in JSON can be half of a character (\ud83d), which no tokenizer and no file accepts
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise UserError(f"{name}: contains {half}, half of a character; write both halves or remove it") from error


def repr_short(value: Any) -> str:
    """Return a value, truncated, and its type for messages."""
    if value == []:
        return "an empty list"
    text = repr(value)
    return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(value).__name__})"
