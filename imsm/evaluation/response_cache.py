"""On-disk cache of responses and likelihoods, shared by all runs.

    <runs root>/response_cache/<first 16 digits of the model fingerprint>.jsonl
    {"check": "9f2c…", "key": "41ab…", "row": {...}}

Any number of processes append lines, one batch at a time. A row's key is the hash of everything the
row depends on, so a row never becomes stale. A checksum detects damaged lines, which are moved to a
separate file and computed again.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_json

_DIGITS = 16
Row = Mapping[str, Any]


class ResponseCache:
    """The cached rows of one model; ``fingerprint`` hashes backbone, adapter, gate, precision and stream."""

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder = folder
        self.path = folder / f"{fingerprint[:_DIGITS]}.jsonl"

    def read(self) -> dict[str, Row]:
        """Return all rows by key; of duplicates the first.

        Damaged lines (a killed process, a failing disk) are moved to a `.damaged` file with a warning.

        Raises:
            UserError: The file cannot be read.
        """
        if not self.path.is_file():
            return {}
        rows, damaged = _parse(self._text())
        if damaged:
            with self._lock():
                # Another process may have repaired the file before the lock was free.
                rows, damaged = _parse(self._text())
                self._quarantine(damaged)
        return rows

    def append(self, rows: Mapping[str, Row]) -> None:
        """Append rows by key and flush them to disk.

        Raises:
            OSError: The file cannot be written; existing rows are unchanged.
        """
        if not rows:
            return
        entries = ({"check": _checksum(key, row), "key": key, "row": row} for key, row in rows.items())
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        # Mode "a" writes at the end of the file, wherever the stream was moved to read.
        with self._lock(), self.path.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                # Without a line break, a process was killed while it wrote the last line.
                if stream.read(1) != b"\n":
                    text = "\n" + text
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _text(self) -> str:
        try:
            # A damaged byte must invalidate its own line only; the checksum finds the replacement.
            return self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _quarantine(self, damaged: list[str]) -> None:
        if not damaged:
            return
        quarantine = self.path.with_suffix(".damaged")
        with quarantine.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in damaged)
        lines = [line for line in self._text().split("\n") if line and line not in damaged]
        write_atomic(self.path, "".join(f"{line}\n" for line in lines))
        print(
            f"imsm: {self.path}: {len(damaged)} damaged line(s) moved to {quarantine.name}; they are computed again",
            file=sys.stderr,
        )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the file against all other processes; the lock ends with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A separate file: write_atomic replaces the cache file, and a lock on it would be lost.
        with self.path.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _checksum(key: str, row: Row) -> str:
    return hash_json([key, row])[:_DIGITS]


def _parse(text: str) -> tuple[dict[str, Row], list[str]]:
    """Return the rows by key, and the damaged lines."""
    rows: dict[str, Row] = {}
    damaged = []
    # Not splitlines(): JSON strings may contain its other separators, such as U+2028.
    for line in filter(None, text.split("\n")):
        try:
            entry = json.loads(line)
            key, row = entry["key"], entry["row"]
            intact = _checksum(key, row) == entry["check"]
        except (ValueError, KeyError, TypeError):
            intact = False
        if intact:
            # Two processes may have computed the same row; every reader must use the same one.
            rows.setdefault(key, row)
        else:
            damaged.append(line)
    return rows, damaged
