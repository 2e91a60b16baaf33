"""Local datasets (`data.local_dir`): train and test as JSON lines of {"input", "output"}."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def find_file(folder: Path, *, role: str) -> Path:
    """Return the folder's only file for a role, e.g. train.jsonl.

    Raises:
        UserError: The folder or the file is missing, or there are several files.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.local_dir={folder}: is not a directory; give one that contains train.jsonl and test.jsonl"
        )
    found = [path for ending in ENDINGS if (path := folder / (role + ending)).is_file()]
    if not found:
        present = sorted(path.name for path in folder.iterdir())[:10]
        raise UserError(
            f"data.local_dir={folder}: has no file for {role}, one of "
            f"{', '.join(role + ending for ending in ENDINGS)}; it contains {', '.join(present) or 'no file'}"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"data.local_dir={folder}: contains {names}; keep one of them")
    return found[0]


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a file: one JSON value per non-blank line, or one JSON list.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or (naming the row) not JSON.
    """
    try:
        data = path.read_bytes()
        # utf-8-sig: editors on Windows write a byte order mark
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if text.lstrip().startswith("["):
        return list(_parse(text, str(path)))
    # not splitlines: JSON strings may contain U+2028, which it takes for a line break
    lines = (line for line in text.split("\n") if line.strip())
    return [_parse(line, f"{path}, row {row}") for row, line in enumerate(lines, start=1)]


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{location}: is not JSON ({error}); write one object per line, or one list") from error
