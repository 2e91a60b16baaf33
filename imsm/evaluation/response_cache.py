"""On-disk cache of responses and likelihoods, shared by all runs.

    <runs root>/response_cache/<first 16 digits of the model fingerprint>.sqlite
    table responses (key TEXT PRIMARY KEY, checksum TEXT, row TEXT of JSON)

One SQLite database per model: runs of different models never wait for each other, and damage to a file or its
removal concerns one model only. A row's key is the hash of everything the row depends on, so a row never becomes
stale. A checksum of key and row detects what SQLite does not; such rows are never returned.

Any number of processes use a database at once. A transaction that a kill or a power failure interrupts is rolled
back by the next process (rollback journal, synchronous=EXTRA). The write-ahead log is not used: it needs shared
memory, which network file systems lack. NFS must support POSIX locks (NFSv4, or lockd with NFSv3) as SQLite and
the lock next to each database need them; with `nolock` or `local_lock=all`, only one host may use the folder.
"""

import errno
import fcntl
import hashlib
import json
import os
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.progress import print_above_bar

_DIGITS = 16
_TIMEOUT = 60.0
"""Seconds to wait for another program, such as a SQLite shell, that has locked the database."""
_MAX_ROW_BYTES = 2**27
_MIN_ROW_BYTES = 16
_CREATE = "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, checksum TEXT, row TEXT)"
# two processes may have computed the same row; every reader must use the same one
_INSERT = "INSERT OR IGNORE INTO responses VALUES (?, ?, ?)"
_SELECT = "SELECT key, checksum, row FROM responses WHERE key = ?"
_SCAN = "SELECT rowid, key, checksum, row FROM responses NOT INDEXED WHERE rowid >= ? ORDER BY rowid"
_SEEK = "SELECT rowid FROM responses NOT INDEXED WHERE rowid >= ? ORDER BY rowid LIMIT 1"
_ERRNOS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EAGAIN,
    sqlite3.SQLITE_LOCKED: errno.EAGAIN,
    sqlite3.SQLITE_PROTOCOL: errno.ENOLCK,
}
"""Errors that are not damage of the database; all others are."""
Row = Mapping[str, Any]
IsValid = Callable[[str, Row], bool]


class _DamagedError(Exception):
    """The file is not an intact database with the table."""


class ResponseCache:
    """The cached rows of one model; ``fingerprint`` hashes backbone, adapter, gate, precision and stream."""

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self.folder = folder
        self.path = folder / f"{fingerprint[:_DIGITS]}.sqlite"

    def get(self, keys: Collection[str], *, is_valid: IsValid = lambda key, row: True) -> dict[str, Row]:
        """Return the cached rows of the keys; rows for which ``is_valid(key, row)`` is False count as damaged.

        A database with damage is replaced by one with its intact rows, and renamed, with one warning.

        Raises:
            UserError: The file cannot be read.
        """
        if not os.path.lexists(self.path):
            return {}
        try:
            with self._lock(shared=True):
                rows, discarded = self._select(keys, is_valid)
            if discarded is None:
                return rows
            with self._lock(shared=False):
                # Another process may have repaired the database before the lock was free.
                rows, discarded = self._select(keys, is_valid)
                if discarded is not None:
                    self._repair(discarded)
                    rows, _ = self._select(keys, is_valid)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read ({error.strerror or error}); make the folder readable and writable, or "
                "delete the file to compute its responses again"
            ) from error
        return rows

    def append(self, rows: Mapping[str, Row]) -> None:
        """Append rows by key and flush them to disk; a key's first row is kept.

        Raises:
            OSError: The rows cannot be written; existing rows are unchanged.
        """
        if not rows:
            return
        entries = []
        for key, row in rows.items():
            text = json.dumps(row, ensure_ascii=False)
            entries.append((key, _checksum(key.encode(), text.encode()), text))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(shared=False):
            try:
                self._insert(entries)
            except _DamagedError:
                self._repair(())
                self._insert(entries)

    def _select(self, keys: Iterable[str], is_valid: IsValid) -> tuple[dict[str, Row], set[str] | None]:
        """Return the intact rows, and the keys of invalid ones; None instead of the keys without damage."""
        rows: dict[str, Row] = {}
        discarded: set[str] = set()
        try:
            with self._connect() as connection:
                # A process was killed during its first transaction.
                if connection.execute("PRAGMA page_count").fetchone() == (0,):
                    return rows, None
                for key in keys:
                    found = connection.execute(_SELECT, [key]).fetchone()
                    if found is None:
                        continue
                    row = _parse(*found) if found[0] == key.encode() else None
                    if row is None or not is_valid(key, row):
                        discarded.add(key)
                    else:
                        rows[key] = row
        except _DamagedError:
            return rows, discarded
        return rows, discarded or None

    def _insert(self, entries: Iterable[tuple[str, str, str]]) -> None:
        with self._connect(create=True) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_CREATE)
            connection.executemany(_INSERT, entries)
            connection.execute("COMMIT")

    def _repair(self, discarded: Collection[str]) -> None:
        """Replace the database by one with its intact rows, without the discarded keys; keep the old file.

        The caller holds the lock.
        """
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        numbered = (self.path.with_suffix(f".damaged-{number}") for number in count(1))
        aside = next(path for path in numbered if not os.path.lexists(path))
        temporary.unlink(missing_ok=True)
        try:
            with _opened(temporary, create=True) as new:
                # Without a journal, which would remain after a kill.
                new.execute("PRAGMA journal_mode = OFF")
                new.execute("BEGIN IMMEDIATE")
                new.execute(_CREATE)
                if self.path.is_file():
                    with _opened(self.path) as old:
                        new.executemany(_INSERT, _intact_entries(old, discarded))
                new.execute("COMMIT")
                (num_rows,) = new.execute("SELECT count(*) FROM responses").fetchone()
            try:
                os.link(self.path, aside)
            # a folder, or a file system without links
            except OSError:
                self.path.rename(aside)
            # It belongs to the old database, and would be rolled back into the new one.
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        print_above_bar(
            f"{self.path}: damaged; {num_rows:,} intact rows are kept, the others are computed again "
            f"(the old file is {aside.name})"
        )

    @contextmanager
    def _connect(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        if self.path.is_dir():
            raise _DamagedError
        with _opened(self.path, create=create) as connection:
            yield connection

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        """Lock the database, which `_repair` replaces, against all other processes; the lock ends with the process."""
        try:
            # A separate file: a lock on the database would be lost when it is replaced.
            stream = self.path.with_suffix(".lock").open("a")
        except OSError:
            if not shared:
                raise
            # a folder that is read-only, in which nothing is replaced
            yield
            return
        with stream:
            fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield


@contextmanager
def _opened(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database; errors of SQLite become OSError or _DamagedError."""
    mode = "rwc" if create else "rw"
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, isolation_level=None)) as connection:
            # bytes, because a damaged row need not be UTF-8
            connection.text_factory = bytes
            # A damaged length must not allocate gigabytes.
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
            connection.execute("PRAGMA cell_size_check = ON")
            yield connection
    except sqlite3.Error as error:
        number = _ERRNOS.get(_error_code(error))
        # SQLite reports only ENOSPC as a full disk, not a quota or a limit on the file's size.
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_WRITE:
            number = errno.ENOSPC
        if number is None:
            raise _DamagedError(str(error)) from error
        raise OSError(number, str(error), str(path)) from error


def _intact_entries(connection: sqlite3.Connection, discarded: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (key, checksum, row) of the intact rows of a damaged database, skipping what cannot be read."""
    # Otherwise a truncated database is rejected as a whole.
    connection.execute("PRAGMA writable_schema = ON")
    (file,) = (Path(os.fsdecode(path)) for _, name, path in connection.execute("PRAGMA database_list"))
    limit = file.stat().st_size // _MIN_ROW_BYTES
    start: int | None = 0
    while start is not None:
        try:
            for index, (rowid, *entry) in enumerate(connection.execute(_SCAN, [start])):
                # Row numbers are consecutive; further ones of the scan may be damaged.
                start = rowid + 1 if index == 0 and rowid <= limit else start + 1
                # damaged pages that lead back to earlier ones
                if start > limit:
                    return
                if _parse(*entry) is not None and (key := entry[0].decode()) not in discarded:
                    yield key, entry[1].decode(), entry[2].decode()
            return
        except sqlite3.DatabaseError as error:
            if _error_code(error) == sqlite3.SQLITE_BUSY:
                raise
            start = _next_readable(connection, start, limit)


def _next_readable(connection: sqlite3.Connection, start: int, limit: int) -> int | None:
    """Return the lowest row number after ``start`` from which rows can be read, or None."""

    def readable(rowid: int) -> bool:
        try:
            found = connection.execute(_SEEK, [rowid]).fetchone()
        except sqlite3.DatabaseError:
            return False
        return found is None or rowid <= found[0] <= limit

    # only the row's own content is damaged
    if readable(start):
        return start + 1 if start < limit else None
    steps = (2**bits for bits in range(limit.bit_length()))
    step = next((step for step in steps if readable(start + step)), None)
    if step is None:
        return None
    candidates = range(start + step // 2 + 1, start + step)
    return candidates.start + bisect_left(candidates, True, key=readable)


def _parse(key: Any, checksum: Any, text: Any) -> Row | None:
    """Return the row of an entry, or None if it is damaged."""
    # SQLite stores values of any type in a column, and so does a damaged byte.
    if not (isinstance(key, bytes) and isinstance(text, bytes)) or checksum != _checksum(key, text).encode():
        return None
    try:
        row = json.loads(text)
        key.decode()
    # RecursionError: deeply nested brackets
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _checksum(key: bytes, text: bytes) -> str:
    return hashlib.sha256(key + b"\0" + text).hexdigest()[:_DIGITS]


def _error_code(error: sqlite3.Error) -> int:
    # The lowest byte, without the details. Errors of Python's own checks have no code.
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
