"""Graceful shutdown: signals take effect at the end of a training step.

SIGINT, SIGTERM and SIGHUP end training after a checkpoint; SIGUSR1 requests a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from imsm.distributed.worker import LAUNCHER_PID
from imsm.utils.stop_signals import STOP_SIGNALS, record, stop_now


class GracefulShutdown:
    """Within this context the first SIGINT, SIGTERM or SIGHUP only sets ``requested``.

    A second one ends the process (see `imsm.utils.stop_signals`). SIGUSR1 sets ``save_requested``, which the
    training loop resets. Ignored signals (nohup) stay ignored; outside the main thread no handler is installed.
    """

    def __init__(self) -> None:
        self.requested = False
        self.save_requested = False
        self._deferred = True
        self._previous: dict[int, object] = {}

    def __enter__(self) -> GracefulShutdown:
        """Install the handlers."""
        # Python allows signal.signal in the main thread only
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._request)
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._request_save)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within this block the first signal already raises KeyboardInterrupt."""
        self._deferred = False
        try:
            yield
        finally:
            self._deferred = True

    def _request_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and LAUNCHER_PID in os.environ:
            # a cluster signals every process and the launcher forwards its own signal: both arrive
            # here, so a second signal is not a second request; the launcher kills on one
            return
        if self.requested:
            stop_now(number)
        record(number)
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt
        print("\nstopping after this step (signal again to stop immediately)", file=sys.stderr, flush=True)
