"""The two ways in which a command ends early on purpose; both print one message, no traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message names the value, what is allowed and the fix. Exit code 2."""


class RunError(RuntimeError):
    """A run that went wrong although its input was right (a loss that is NaN). Exit code 1."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
