"""Ways to damage a file."""

from __future__ import annotations

from pathlib import Path


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip_bit(file: Path) -> None:
    """Flip one bit in the middle, which no file format notices by itself."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()
