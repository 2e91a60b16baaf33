"""Atomic writes and folder locks."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.progress import print_above_bar


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to a temporary file and rename it to ``path``.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    # In the same folder, because a rename is atomic only within one file system.
    # A random part as well, because threads and processes on other hosts may write the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            # Otherwise a power failure after the rename can leave an empty file.
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to disk.

    Raises:
        OSError: The file cannot be read or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # some network file systems reject fsync on a folder
        with contextlib.suppress(*((OSError,) if path.is_dir() else ())):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to disk, so that a power failure loses none of it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        fsync(path)
    fsync(folder)
    # the folder's own name is an entry of its parent
    fsync(folder.parent)


@contextmanager
def file_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder, created if missing, against other processes, by its file `lock`.

    With ``wait``, wait until another process releases the lock, with a log line, instead of raising.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # not through a link, which could lead anywhere in a downloaded folder; for reading too: a FIFO would block
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"run_dir={folder}: cannot be written ({error.strerror or error})") from error
    with open(descriptor, "w") as stream:
        # flock, not a file that exists or not: the kernel releases it when the process is killed.
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(f"run_dir={folder}: another process is using this run; wait for it to end") from error
            print_above_bar(f"waiting for another process that uses {folder}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
