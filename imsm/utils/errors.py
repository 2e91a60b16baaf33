"""Expected errors; the command line prints their message without a traceback."""

import os


class UserError(ValueError):
    """Invalid input; the message has the form ``key=value: problem; fix``. Exit code 2."""


class RunError(RuntimeError):
    """A run failed on valid input, e.g. because the loss became NaN. Exit code 1."""


def file_error(error: BaseException) -> UserError | None:
    """Return an error that names the file of an OSError (of a rename its target); None if it has no file."""
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(error, OSError) or not isinstance(file, str | os.PathLike):
        return None
    reason = error.strerror or type(error).__name__
    return UserError(f"{os.fspath(file)}: {reason}; repair or remove it, then run the same command again")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
