"""SHA-256 of JSON values, strings and files, as hexadecimal strings."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from imsm.utils.files import write_atomic
from imsm.utils.paths import cache_folder


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
    """Return `hash_file`, cached on disk by path, size and modification time.

    Weights can be many gigabytes; an unwritable cache only costs time.
    """
    cache = cache_folder() / "fingerprints.json"
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    try:
        hashes = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        hashes = {}
    if key not in hashes:
        hashes[key] = hash_file(path)
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, json.dumps(hashes))
    return hashes[key]


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
