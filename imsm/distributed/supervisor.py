"""Watch over processes: pass signals on, and let none outlive the failure of another."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

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


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code, its output written.

    After collectives it ends at once: threads of torch and DeepSpeed do not always survive an
    orderly end, and one that had done all its work would be reported as killed by SIGABRT.
    """
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    if group is not None and group.is_available() and group.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


STOPPED = 130
"""The exit code of a process that was stopped by hand, after a checkpoint."""
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = (*_STOPS, signal.SIGUSR1)
_GRACE = 1.0
"""Seconds in which the others may end by themselves after one has failed."""
_GRACE_STOPPED = 60.0
"""The same after one was stopped: another one may still write the checkpoint."""
_TERM = 5.0
"""Seconds from SIGTERM to SIGKILL."""
_PAUSE = 0.05


@dataclass(frozen=True, kw_only=True)
class WorkerError:
    """What a process left behind about its own error.

    Attributes:
        kind: the error's class; "UserError" and "RunError" are meant for the user.
        text: one line or more, without a traceback.
        trace: the traceback.
        time: when it happened, in seconds since 1970.
    """

    kind: str
    text: str
    trace: str
    time: float


@dataclass(kw_only=True)
class WorkerProcess:
    """A process that was started, in a session of its own.

    Attributes:
        rank: which one it is.
        process: itself.
        log: where its output goes; None: to the terminal.
        error_file: where it leaves its error.
        stops_by: the one signal that it takes, in place of any; None: it takes all.
    """

    rank: int
    process: subprocess.Popen[bytes]
    log: Path | None = None
    error_file: Path | None = None
    stop_signal: int | None = None
    ended: float | None = None
    """When it was seen to have ended."""
    stop_requested: bool = False
    """Whether a request to stop was passed on to it."""
    terminated_by_us: bool = False
    """Whether it was made to end since another one had failed."""

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.returncode

    @property
    def failure(self) -> WorkerError | None:
        """Its own error, if it left one."""
        if self.error_file is None or not self.error_file.is_file():
            return None
        try:
            return WorkerError(**json.loads(self.error_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # it was killed while it wrote
            return None

    @property
    def failed_at(self) -> float:
        """When it failed; the others notice a killed process before we do."""
        failure = self.failure
        if failure is not None:
            return failure.time
        assert self.ended is not None and self.code is not None
        return self.ended - (_GRACE if self.code < 0 else 0)

    @property
    def stopped(self) -> bool:
        """Whether it ended by request, and not by an error."""
        early = (-signal.SIGINT, -signal.SIGTERM)  # before it could take the signal over
        return self.code == STOPPED or (self.stop_requested and self.code in early)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.time()
        return self.ended is not None

    def send(self, number: int) -> None:
        """Pass a signal on."""
        if not self.poll():
            stop = number in _STOPS
            self.stop_requested |= stop
            if stop or self.stop_signal is None:
                self.process.send_signal(self.stop_signal or number)

    def kill(self) -> None:
        """End it and what it started, at once."""
        if not self.poll():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class SignalForwarder:
    """Inside this block signals are noted down, to be passed on; outside the main thread: none."""

    _noted: list[int] = field(default_factory=list)
    _before: dict[int, object] = field(default_factory=dict)

    def __enter__(self) -> SignalForwarder:
        """Take the signals over; one that is ignored (nohup) stays ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in _PASSED_ON:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def take(self) -> list[int]:
        """What has come since the last call."""
        taken, self._noted[:] = list(self._noted), []
        return taken

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append(number)


def supervise(workers: Sequence[WorkerProcess], signals: SignalForwarder) -> bool:
    """Wait until all have ended; returns whether they were killed by a second request to stop.

    A signal is passed on to all of them, once each. If one fails, the others are asked to end, and
    killed where they do not.
    """
    stops = 0
    killed = False
    while not _all_ended(workers):
        for number in signals.take():
            stops += number in _STOPS
            if stops > 1 and number in _STOPS:
                killed = True
            else:
                for worker in workers:
                    worker.send(signal.SIGTERM if number == signal.SIGHUP else number)
        limit = _limit(workers)
        if killed or (limit is not None and time.time() > limit + _TERM):
            for worker in workers:
                worker.terminated_by_us |= not worker.poll()
                worker.kill()
        elif limit is not None and time.time() > limit:
            for worker in workers:
                if not worker.terminated_by_us and not worker.poll():
                    worker.terminated_by_us = True
                    worker.send(signal.SIGTERM)
        time.sleep(_PAUSE)
    return killed


def first_failed(workers: Sequence[WorkerProcess]) -> WorkerProcess | None:
    """The one that failed before all others; a stopped one only if there is no other."""
    failing = [worker for worker in workers if worker.code != 0 and not worker.terminated_by_us]
    own = [worker for worker in failing if not worker.stopped]
    return min(own or failing, key=lambda worker: worker.failed_at, default=None)


def _all_ended(workers: Sequence[WorkerProcess]) -> bool:
    return all([worker.poll() for worker in workers])


def _limit(workers: Sequence[WorkerProcess]) -> float | None:
    """Until when the others may go on after one has ended badly; None: none has."""
    return min(
        (
            worker.ended + (_GRACE_STOPPED if worker.stopped else _GRACE)
            for worker in workers
            if worker.ended is not None and worker.code != 0
        ),
        default=None,
    )
