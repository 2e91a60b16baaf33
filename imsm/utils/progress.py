"""Progress bars: live in a terminal, occasional lines in a log file."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(
    steps: Iterable | None = None,
    *,
    total: int,
    done: int = 0,
    label: str,
    unit: str,
    keep: bool = True,
    shown: bool = True,
) -> tqdm:
    """Return a progress bar on standard error; without ``steps``, the caller updates it.

    ``done`` steps were completed before. The finished bar stays on the screen with ``keep``.
    """
    live = sys.stderr.isatty()
    return tqdm(
        steps,
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        leave=keep,
        mininterval=0.2 if live else 20,
        maxinterval=1 if live else 30,
        dynamic_ncols=True,
        disable=not shown,
    )


def print_above_bar(text: str) -> None:
    """Print a line to standard error, above any progress bar."""
    # print() would append to the line of a live bar.
    tqdm.write(f"imsm: {text}", file=sys.stderr)
