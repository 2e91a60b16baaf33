"""SHA-256 of JSON values, strings and files, as hexadecimal strings."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from imsm.utils.files import write_atomic
from imsm.utils.paths import cache_folder

_CACHE = "file_hashes"
_MAX_CACHED = 1000
"""Number of files whose hash is cached."""


def hash_json(value: Any) -> str:
    """Return the hash of a value's compact JSON."""
    # Keys are not sorted: hashes that are saved in caches depend on the exact text.
    return hash_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def hash_text(text: str) -> str:
    """Return the hash of a string's UTF-8 bytes."""
    return hash_chunks([text.encode()])


def hash_chunks(chunks: Iterable[bytes]) -> str:
    """Return the hash of the concatenated chunks."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()


def hash_file(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_file_cached(path: Path) -> str:
    """Return `hash_file`, cached on disk by path, size, inode and times.

    Only for weights of many gigabytes that imsm did not write: a failing disk can change a file without its times.
    An unwritable cache, or a damaged entry, only costs time.
    """
    status, resolved = path.stat(), str(path.resolve())
    # the inode and its change time also reveal a file that was replaced with its modification time kept
    seen = [resolved, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    # one file per entry, so that processes neither wait for each other nor lose each other's entries
    entry = cache_folder() / _CACHE / f"{hash_text(resolved)[:32]}.json"
    try:
        saved = json.loads(entry.read_text(encoding="utf-8"))
        if saved["file"] == seen and saved["check"] == hash_json([seen, saved["sha256"]]):
            return str(saved["sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    sha256 = hash_file(path)
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(entry, json.dumps({"file": seen, "sha256": sha256, "check": hash_json([seen, sha256])}))
        _prune(entry.parent)
    return sha256


def _prune(folder: Path) -> None:
    """Delete cached hashes of files that are gone or changed, damaged ones, and the oldest beyond the limit."""
    by_age = sorted(folder.glob("*.json"), key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
    for number, entry in enumerate(by_age):
        try:
            path, size, *_ = json.loads(entry.read_text(encoding="utf-8"))["file"]
            current = Path(path).stat().st_size == size
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            current = False
        if not current or number >= _MAX_CACHED:
            entry.unlink(missing_ok=True)


class HashingWriter:
    """Write bytes to a binary stream and hash them on the way."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Write and hash ``data``."""
        self._sha256.update(data)
        self._stream.write(data)

    def hexdigest(self) -> str:
        """Return the hash of everything written so far."""
        return self._sha256.hexdigest()
