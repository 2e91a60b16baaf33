"""Progress bars: live in a terminal, a line now and then in a log file."""

from __future__ import annotations

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
    """A bar on standard error.

    Args:
        steps: what is iterated; None if the caller updates the bar.
        total: of how many.
        done: how many were done before.
        label: what it says on the left.
        unit: what is counted.
        keep: leave the finished bar on the screen.
        shown: False for all but one of several processes.
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
    """A line on standard error, above whatever bar is shown."""
    tqdm.write(f"imsm: {text}", file=sys.stderr)
