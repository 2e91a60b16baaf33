"""Ways to damage a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip_bit(file: Path, position: int | None = None) -> None:
    """Flip one bit, by default in the middle, which no file format notices by itself."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


def make_folder(file: Path) -> None:
    """Put a folder in the place of a file."""
    file.unlink()
    file.mkdir()


def make_unreadable(file: Path) -> None:
    """Take the permission to read a file; root may read every file, but not a link to itself."""
    if os.geteuid():
        file.chmod(0)
    else:
        file.unlink()
        file.symlink_to(file.name)


def write(content: bytes) -> Callable[[Path], None]:
    """Return a function that replaces a file's content."""

    def replace(file: Path) -> None:
        file.write_bytes(content)

    return replace


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "flipped": flip_bit,
    "empty": write(b""),
    "missing": delete,
    "folder": make_folder,
    "unreadable": make_unreadable,
    "list": write(b"[]"),
    "mapping": write(b"{}"),
    "null": write(b"null"),
    "number": write(b"7"),
    "text": write(b'"text"'),
    "nested": write(b'{"a": ' + b"[" * 100_000),
    "binary": write(b"\xff\xfe\x00"),
}
"""Functions that damage a file in place, by name."""
