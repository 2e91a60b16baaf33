"""Read JSON files that other programs, other versions or a failing disk may have changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError

_NAMES: dict[type, str] = {dict: "a mapping", list: "a list"}


def read_json(path: Path, *, fix: str, expect: type = dict) -> Any:
    """Return the content of a JSON file.

    ``fix`` ends every error message and says what the user can do; ``expect`` is the type of the content.

    Raises:
        UserError: The file is missing, unreadable, damaged, or holds another type than ``expect``.
    """
    text = read_text(path, fix=fix)
    try:
        value = json.loads(text)
    # RecursionError: deeply nested brackets
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); {fix}") from error
    if not isinstance(value, expect):
        raise UserError(f"{path}: is damaged (must contain {_NAMES.get(expect, "another type")}); {fix}")
    return value


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


def iter_json_lines(path: Path, *, fix: str) -> Iterator[Any]:
    """Yield the values of a JSON-lines file, one at a time; empty lines are skipped.

    Raises:
        UserError: The file is missing or unreadable, or a line is damaged; the message has its number.
    """
    number = 0
    try:
        # bytes, because in text mode a \r inside a value would end a line
        with path.open("rb") as stream:
            for line in stream:
                number += 1
                if line.strip():
                    yield json.loads(line)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; {fix}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is damaged ({error}); {fix}") from error
