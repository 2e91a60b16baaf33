"""Supervise worker processes: forward signals, stop all after a failure, leave no orphan."""

from __future__ import annotations

import ctypes
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
from types import FrameType
from typing import NoReturn

from imsm.utils.errors import UserError
from imsm.utils.json_files import read_json
from imsm.utils.stop_signals import EXIT_CODES, STOP_SIGNALS, record

STOPPED = 130
"""Exit code of a process group that was stopped by a signal, after a checkpoint."""
_FORWARDED = (*STOP_SIGNALS, signal.SIGUSR1)
# time for the other workers to end by themselves after one has failed
_GRACE_SECONDS = 1.0
# the same after one was stopped: another one may still be writing the checkpoint
_GRACE_STOPPED_SECONDS = 60.0
# time from SIGTERM to SIGKILL
_TERM_SECONDS = 5.0
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


def kill_on_parent_exit(*, parent_pid: int | None = None, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent ends (Linux only).

    Exits if ``parent_pid`` is given and is not the parent any more.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal_number))
    # the parent may have ended before prctl, and then no signal comes
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def exit_process(code: int) -> NoReturn:
    """Flush the output and end this process.

    After collectives it skips the interpreter's shutdown: threads of torch and DeepSpeed can abort
    in it, and a process that had finished its work would be reported as killed by SIGABRT.
    """
    # not imported here: a process that never used torch would wait seconds for it at its end
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    if group is not None and group.is_available() and group.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@dataclass(frozen=True, kw_only=True)
class WorkerError:
    """The error that a worker recorded; ``kind`` is its class and ``time`` in seconds since the epoch."""

    kind: str
    text: str
    trace: str
    time: float


@dataclass(kw_only=True)
class WorkerProcess:
    """A worker process, started in its own session."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path | None = None  # its output file; None if it shares the terminal
    error_file: Path | None = None
    forwards_all: bool = True  # whether it receives other signals than stop signals
    ended_at: float | None = None  # when `poll` first saw that it had ended, in seconds since the epoch
    stop_requested: bool = False  # whether a stop signal was forwarded to it
    terminated_by_us: bool = False  # whether it was stopped because another worker failed

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self.process.returncode

    @property
    def failure(self) -> WorkerError | None:
        """The error that it recorded, if any."""
        if self.error_file is None or not self.error_file.is_file():
            return None
        try:
            return WorkerError(**read_json(self.error_file, fix="run the same command again"))
        except (UserError, TypeError):  # killed while writing
            return None

    @property
    def failed_at(self) -> float:
        """When it failed, in seconds since the epoch."""
        failure = self.failure
        if failure is not None:
            return failure.time
        assert self.ended_at is not None and self.code is not None
        # the other workers can notice a killed one, and fail, before it is polled here
        return self.ended_at - (_GRACE_SECONDS if self.code < 0 else 0)

    @property
    def stopped(self) -> bool:
        """Whether it ended on request and not because of an error."""
        # before it installed its handlers, the signal itself ends it
        return self.code in EXIT_CODES or (self.stop_requested and self.code == -signal.SIGTERM)

    def poll(self) -> bool:
        """Return whether it has ended."""
        if self.ended_at is None and self.process.poll() is not None:
            self.ended_at = time.time()
        return self.ended_at is not None

    def send(self, number: int) -> None:
        """Forward a signal; every stop signal is sent as SIGTERM."""
        if not self.poll():
            stop = number in STOP_SIGNALS
            self.stop_requested |= stop
            if stop:
                # SIGINT would print a traceback of a worker that has not installed its handlers yet
                self.process.send_signal(signal.SIGTERM)
            elif self.forwards_all:
                self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it and its children."""
        if not self.poll():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class SignalForwarder:
    """Record signals within this context for forwarding; does nothing outside the main thread."""

    _received: list[int] = field(default_factory=list)
    _previous: dict[int, object] = field(default_factory=dict)

    def __enter__(self) -> SignalForwarder:
        """Install the handlers; ignored signals (nohup) stay ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in _FORWARDED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def pop_received(self) -> list[int]:
        """Return the signals received since the last call."""
        received, self._received[:] = list(self._received), []
        return received

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if number in STOP_SIGNALS:
            record(number)


def supervise(workers: Sequence[WorkerProcess], signals: SignalForwarder) -> bool:
    """Wait for all workers; return whether a second stop signal killed them.

    Each signal is forwarded once to every worker. After one worker fails, the others get a grace
    period, then SIGTERM, then SIGKILL.
    """
    stops = 0
    killed = False
    # a list, so that every worker is polled: `ended_at` orders the failures
    while not all([worker.poll() for worker in workers]):
        for number in signals.pop_received():
            stops += number in STOP_SIGNALS
            if stops > 1 and number in STOP_SIGNALS:
                killed = True
            else:
                for worker in workers:
                    worker.send(number)
        deadline = _deadline(workers)
        if killed or (deadline is not None and time.time() > deadline + _TERM_SECONDS):
            for worker in workers:
                worker.terminated_by_us |= not worker.poll()
                worker.kill()
        elif deadline is not None and time.time() > deadline:
            for worker in workers:
                if not worker.terminated_by_us and not worker.poll():
                    worker.terminated_by_us = True
                    worker.send(signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
    return killed


def first_failed(workers: Sequence[WorkerProcess]) -> WorkerProcess | None:
    """Return the worker that failed first; a stopped one only if no other failed."""
    failed = [worker for worker in workers if worker.code != 0 and not worker.terminated_by_us]
    not_stopped = [worker for worker in failed if not worker.stopped]
    return min(not_stopped or failed, key=lambda worker: worker.failed_at, default=None)


def _deadline(workers: Sequence[WorkerProcess]) -> float | None:
    """Return until when workers may run on after a failure; None without one."""
    return min(
        (
            worker.ended_at + (_GRACE_STOPPED_SECONDS if worker.stopped else _GRACE_SECONDS)
            for worker in workers
            if worker.ended_at is not None and worker.code != 0
        ),
        default=None,
    )
