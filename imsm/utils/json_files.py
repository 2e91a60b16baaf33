"""Read JSON files that other programs, other versions or a failing disk may have changed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

HASH_KEY = "sha256"
_NAMES: dict[type, str] = {dict: "a mapping", list: "a list", str: "a text", int: "a whole number"}


def format_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in ASCII, without control characters that a terminal would execute.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def read_json(path: Path, *, fix: str, expect: type = dict, shape: Mapping[str, type] | None = None) -> Any:
    """Return the content of a JSON file.

    ``fix`` ends every error message and says what the user can do; ``expect`` is the type of the content, and
    ``shape`` the type of each value that the caller relies on, by dotted key.

    Raises:
        UserError: The file is missing, unreadable, damaged, or holds another type than ``expect`` or ``shape``.
    """
    text = read_text(path, fix=fix)
    try:
        value = json.loads(text)
    # RecursionError: deeply nested brackets
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); {fix}") from error
    if not isinstance(value, expect):
        raise UserError(f"{path}: is damaged (must contain {_NAMES[expect]}); {fix}")
    if problem := shape_problem(value, shape or {}):
        raise UserError(f"{path}: is damaged ({problem}); {fix}")
    return value


def shape_problem(value: Any, shape: Mapping[str, type]) -> str | None:
    """Return why a mapping lacks a value of ``shape``, the type by dotted key, or None; see `read_json`."""
    for key, expected in shape.items():
        found: Any = value
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, expected):
            return f"{key} must be {_NAMES[expected]}"
    return None


def write_hashed_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping with its own SHA-256 as the last value, so that `read_hashed_json` finds any change.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    text = json.dumps({**values, HASH_KEY: hash_values(values)}, indent=2, ensure_ascii=False)
    write_atomic(path, text + "\n")


def read_hashed_json(path: Path, *, fix: str, shape: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return the mapping that `write_hashed_json` wrote; the other arguments are those of `read_json`.

    Raises:
        UserError: As for `read_json`, or the content was changed.
    """
    values: dict[str, Any] = read_json(path, fix=fix, shape=shape)
    if values.pop(HASH_KEY, None) != hash_values(values):
        raise UserError(f"{path}: changed since it was written (its hash differs); {fix}")
    return values


def hash_values(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping's JSON; the order of keys has no effect."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_text(path: Path, *, fix: str) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        UserError: The file is missing, unreadable, a folder, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; {fix}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is damaged (not UTF-8 at byte {error.start}); {fix}") from error
    except ValueError as error:  # a name with a null character
        raise UserError(f"{path}: cannot be read ({error}); {fix}") from error
