"""Local datasets (`data.local_dir`): a folder with train and test files, or one file, of JSON lines.

JSON lines are read as a stream, so that a file can be larger than memory; a JSON list is read as a whole.
"""

import gzip
import json
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from imsm.utils.errors import UserError

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LocatedRow(NamedTuple):
    """A row, its position among the file's rows (from 0), and its place for messages ("line 3")."""

    position: int
    location: str
    value: Any


def find_file(path: Path, *, role: str) -> Path:
    """Return the folder's only file for a role, e.g. train.jsonl; a path of a file is the training file.

    Raises:
        UserError: The folder or the file is missing, or there are several files.
    """
    if path.is_file():
        if role == "train":
            return path
        raise UserError(
            f"data.local_dir={path}: is a file; give the folder that has train.jsonl and test.jsonl, or set "
            "data.test_share=0.1 to test on a tenth of the file's rows"
        )
    if not path.is_dir():
        raise UserError(
            f"data.local_dir={path}: does not exist; give a folder that contains train.jsonl and test.jsonl"
        )
    found = files_of(path, role=role)
    if not found:
        present = sorted(file.name for file in path.iterdir())[:10]
        fix = "; add it, or set data.test_share=0.1 to test on a tenth of the training rows" if role == "test" else ""
        raise UserError(
            f"data.local_dir={path}: has no file for {role}, one of "
            f"{', '.join(role + ending for ending in ENDINGS)}; it contains {', '.join(present) or 'no file'}{fix}"
        )
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise UserError(f"data.local_dir={path}: contains {names}; keep one of them")
    return found[0]


def files_of(folder: Path, *, role: str) -> list[Path]:
    """Return the folder's files for a role."""
    return [file for ending in ENDINGS if (file := folder / (role + ending)).is_file()]


def count_rows(path: Path) -> int:
    """Return the number of rows without parsing JSON lines.

    Raises:
        UserError: The file cannot be read.
    """
    return sum(1 for _ in (_elements(path) if _is_list(path) else _lines(path)))


def iter_rows(path: Path, *, chosen: Container[int] | None = None) -> Iterator[LocatedRow]:
    """Yield the rows of a file: one JSON value per non-blank line, or the values of one JSON list.

    With ``chosen``, only rows with these indices are parsed and yielded.

    Raises:
        UserError: The file cannot be read, or (naming the line) is not JSON in UTF-8.
    """
    if _is_list(path):
        for index, value in enumerate(_elements(path)):
            if chosen is None or index in chosen:
                yield LocatedRow(index, f"row {index + 1}", value)
        return
    for index, (number, line) in enumerate(_lines(path)):
        if chosen is None or index in chosen:
            yield LocatedRow(index, f"line {number}", _parse(line, f"{path}, line {number}"))


def read_rows(path: Path) -> list[Any]:
    """Return all rows of a file; see `iter_rows`."""
    return [row.value for row in iter_rows(path)]


def _is_list(path: Path) -> bool:
    # only one line is read
    return next((line.lstrip().startswith(b"[") for _, line in _lines(path)), False)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of the non-blank lines."""
    try:
        # bytes: in text mode a carriage return inside a line would end it
        with cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as stream:
            for number, line in enumerate(stream, start=1):
                # editors on Windows write a byte order mark
                text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if text and not text.isspace():
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _elements(path: Path) -> list[Any]:
    return list(_parse(b"".join(line for _, line in _lines(path)), str(path)))


def _parse(text: bytes, location: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    # RecursionError: deeply nested brackets
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{location}: is not JSON ({error}); write one object per line in UTF-8, or one list"
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON parsers keep the last of equal keys, so that the others would be lost unnoticed
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return row
