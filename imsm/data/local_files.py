"""A folder of one's own: train and test as JSON lines of {"input", "output"}."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def find_file(folder: Path, *, role: str) -> Path:
    """The folder's one file for a role, e.g. train.jsonl.

    Raises:
        UserError: no such folder, no such file, or several.
    """
    if not folder.is_dir():
        raise UserError(f"data.local_dir={folder} is no folder. Give one that holds train.jsonl and test.jsonl.")
    found = [folder / (role + end) for end in ENDINGS if (folder / (role + end)).is_file()]
    if not found:
        present = sorted(path.name for path in folder.iterdir())[:10]
        raise UserError(
            f"data.local_dir={folder} lacks a file for {role}, one of "
            f"{', '.join(role + end for end in ENDINGS)}. "
            f"It holds {', '.join(present) or 'nothing'}."
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"data.local_dir={folder} holds {names}: keep one of them.")
    return found[0]


def read_rows(path: Path) -> list[Any]:
    """The rows of a file: one JSON value per line (blank lines aside), or one JSON list.

    Raises:
        UserError: it cannot be read, is a broken archive, not UTF-8, or (naming the row) not JSON.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}).") from error
    if text.lstrip().startswith("["):
        return list(_parse(text, str(path)))
    lines = (line for line in text.split("\n") if line.strip())
    return [_parse(line, f"{path}, row {row}") for row, line in enumerate(lines, start=1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}): one object per line, or one list of objects.") from error
