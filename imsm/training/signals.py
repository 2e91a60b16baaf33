"""Signals wait for the end of a step, so that a checkpoint is never half a step.

Ctrl-C and SIGTERM end the training after a checkpoint; SIGUSR1 asks for a checkpoint alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from imsm.distributed.worker import LAUNCHER


class GracefulShutdown:
    """Inside this block the first Ctrl-C (or SIGTERM) only sets ``requested``.

    The second one interrupts at once. SIGUSR1 sets ``save_requested``, which the loop takes back.
    Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self.save_requested = False
        self._waits = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> GracefulShutdown:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._request_save)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, the first one interrupts too: what runs here is no step and may stop anywhere."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def _request_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and LAUNCHER in os.environ:
            return  # a cluster signals all processes, and the launcher passes its own on; it kills
        waits, self.requested = self._waits and not self.requested, True
        if not waits:
            raise KeyboardInterrupt
        print("\nstopping after this step (again: at once)", file=sys.stderr, flush=True)
