"""Standard streams that never fail: a terminal's encoding, a full disk or a closed pipe must not end a run.

This module imports nothing slow, because a command calls it before anything else.
"""

import codecs
import errno
import io
import os
import sys
from typing import Any

# Characters of reports and messages, for terminals without them.
_PLAIN = {
    **dict(zip("−–—×·∘’†", "---x|o'*", strict=True)),
    **{"±": "+-", "…": "...", "≥": ">=", "≤": "<=", "→": "->", "‡": "**", "Δ": "delta", "α": "alpha", "λ": "lambda"},
}
_ERRORS = "imsm.plain"


class _Output(io.FileIO):
    """A file that discards its output after the first error."""

    error: OSError | None = None

    def write(self, data: object) -> int:
        """Write, or discard the data; return its size."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.error = error
            # the descriptor itself, which libraries in C and child processes share
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes  # type: ignore[arg-type]


def protect_standard_streams() -> None:
    """Replace sys.stdout and sys.stderr by streams that replace characters and never raise.

    A closed standard stream (`>&-`) becomes /dev/null. Otherwise the next file that is opened would get its
    descriptor, and the output of C libraries.
    """
    codecs.register_error(_ERRORS, _plain_characters)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    sys.stdout, sys.stderr = (_protected(number, stream) for number, stream in ((1, sys.stdout), (2, sys.stderr)))


def output_error() -> OSError | None:
    """Flush standard output; return its first error if it was protected and failed."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Output) else None


def is_broken_pipe(error: OSError) -> bool:
    """Return whether the reader of the output has ended."""
    return error.errno == errno.EPIPE


def _protected(descriptor: int, stream: Any) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    buffer = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding if stream is not None else "utf-8",
        errors=_ERRORS,
        line_buffering=stream is not None and stream.line_buffering,
        write_through=stream is not None and stream.write_through,
    )


def _plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), error.end
