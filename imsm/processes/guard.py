"""No process of a run outlives the one that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def kill_on_parent_exit(*, parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """Have the system send this process a signal when its parent ends (on Linux only).

    Args:
        parent: the parent's process id; if it is gone already, this process ends here.
        number: of the signal.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if parent is not None and os.getppid() != parent:
        os._exit(1)
