"""The ledger: what a model was asked and what it said, kept once for all runs.

    <runs' root>/ledger/<16 digits of the model's fingerprint>.jsonl
    {"check": "9f2c…", "key": "41ab…", "row": {...}}

Lines are only ever appended, a batch at a time, by any number of processes. A row's key is the
digest of everything that it depends on, so a row is right for ever, whoever asks again; a check
sum tells a damaged line, which is set aside and made again, never trusted.
"""

from __future__ import annotations

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
    """The rows of one model.

    Args:
        folder: of all ledgers, made with the first row.
        fingerprint: of the model: backbone, adapter, gate, precision and stream.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder = folder
        self.path = folder / f"{fingerprint[:_DIGITS]}.jsonl"

    def read(self) -> dict[str, Row]:
        """All rows by key; of two with one key the first counts.

        Lines that are damaged (a process was killed while it wrote, a disk failed) are moved to a
        file beside the ledger, and said in one line.

        Raises:
            UserError: the ledger cannot be read.
        """
        if not self.path.is_file():
            return {}
        rows, damaged = _parsed(self._text())
        if damaged:
            with self._locked():
                rows, damaged = _parsed(self._text())  # another process may have been faster
                self._set_aside(damaged)
        return rows

    def append(self, rows: Mapping[str, Row]) -> None:
        """Add rows by key; when this returns they are on the disk.

        Raises:
            OSError: they cannot be written; what was there before is as it was, but for a damaged
                line at the end.
        """
        if not rows:
            return
        text = "".join(_line(key, row) for key, row in rows.items())
        with self._locked(), self.path.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a process was killed in the middle of a line
                    text = "\n" + text
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _set_aside(self, damaged: list[str]) -> None:
        if not damaged:
            return
        aside = self.path.with_suffix(".damaged")
        with aside.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in damaged)
        lines = [line for line in self._text().split("\n") if line and line not in damaged]
        write_atomic(self.path, "".join(f"{line}\n" for line in lines))
        print(
            f"imsm: {self.path}: {len(damaged)} damaged line(s) set aside in {aside.name}; what "
            "they held is made again",
            file=sys.stderr,
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the ledger, among all processes; the lock goes with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _line(key: str, row: Row) -> str:
    check = hash_json([key, row])[:_DIGITS]
    return json.dumps({"check": check, "key": key, "row": row}, ensure_ascii=False) + "\n"


def _parsed(text: str) -> tuple[dict[str, Row], list[str]]:
    """Rows by key, and the lines that are damaged."""
    rows: dict[str, Row] = {}
    damaged = []
    for line in text.split("\n"):
        if not line:
            continue
        try:
            entry = json.loads(line)
            key, row = entry["key"], entry["row"]
            whole = hash_json([key, row])[:_DIGITS] == entry["check"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if whole:
            rows.setdefault(key, row)
        else:
            damaged.append(line)
    return rows, damaged
