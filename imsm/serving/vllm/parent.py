"""End vLLM's processes with the process that started them, also if that one is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Kill this process group when standard input ends.

    The starting process holds the other end of that pipe and gave this process a group (`start_new_session`).
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)
