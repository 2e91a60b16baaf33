"""Expected errors; the command line prints their message without a traceback."""


class UserError(ValueError):
    """Invalid input; the message has the form ``key=value: problem; fix``. Exit code 2."""


class RunError(RuntimeError):
    """A run failed on valid input, e.g. because the loss became NaN. Exit code 1."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
