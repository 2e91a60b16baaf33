"""Answer SIGINT, SIGTERM and SIGHUP alike: one line, then the exit code 128 + signal.

The handler ends the process itself. A KeyboardInterrupt would be lost or printed as a traceback if it were raised
inside an import, a finalizer or a callback of a library. Every file is written atomically, so only the unfinished
step is lost. Training installs its own handlers, which finish the step first (`imsm.training.signals`).

This module imports nothing slow, because a command installs the handler before anything else.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODES = tuple(128 + number for number in STOP_SIGNALS)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
# of all cleanups together; a second signal does not wait for them
_CLEANUP_SECONDS = 5

_kept: list[str] = []
_cleanups: list[Callable[[], object]] = []
_received: list[int] = []
_pending: list[int] = []
_deferring = False
_installed = False
_silent = False


def install(*, silent: bool = False) -> None:
    """Handle the stop signals of this process; ignored ones (nohup) stay ignored.

    ``silent`` is for a process whose parent prints the message.
    """
    global _installed, _silent
    _installed, _silent = True, silent
    for number in STOP_SIGNALS:
        # jobs of a cluster install their own handlers
        if signal.getsignal(number) in _DEFAULTS:
            signal.signal(number, _end)


def ignore() -> None:
    """Ignore the stop signals: the work is done and the interpreter is about to shut down."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def record(number: int) -> None:
    """Note a signal that another handler received, for `message` and `exit_code`."""
    _received.append(number)


def stop_now(number: int) -> None:
    """End this process as its handler does; raise KeyboardInterrupt if none was installed."""
    record(number)
    if not _installed:
        raise KeyboardInterrupt
    _end(number)


def exit_code() -> int:
    """Return the exit code of the interrupted command."""
    return 128 + (_received or [signal.SIGINT])[-1]


def message() -> str:
    """Return one line: what interrupted the command, what is kept and how to resume."""
    kept = f"{_kept[-1]}; run the same command again to resume" if _kept else "run the same command again"
    return f"imsm: interrupted by {signal.Signals(exit_code() - 128).name}; {kept}"


@contextmanager
def keeping(text: str) -> Iterator[None]:
    """Add ``text``, what is kept, to the message within this block and after a KeyboardInterrupt that leaves it."""
    _kept.append(text)
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not interrupted:
            _kept.remove(text)


@contextmanager
def on_stop(cleanup: Callable[[], object]) -> Iterator[None]:
    """Within this block a stop signal calls ``cleanup`` before the process ends; leaving the block does not."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


@contextmanager
def deferred() -> Iterator[None]:
    """Within this block, which must be short, a stop signal waits for its end."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
        if _pending:
            _end(_pending[0])


def _end(number: int, frame: FrameType | None = None) -> None:
    """Print the message, call the cleanups and exit."""
    if _deferring:
        _pending.append(number)
        return
    record(number)
    code = exit_code()
    for each in (*STOP_SIGNALS, signal.SIGALRM):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, frame: os._exit(code))
    if not _silent:
        # not print: the signal may have interrupted a write to the same buffer
        line = "\n" * os.isatty(2) + message() + "\n"
        with suppress(OSError):
            os.write(2, line.encode(errors="replace"))
    signal.alarm(_CLEANUP_SECONDS)
    for cleanup in (*reversed(_cleanups), sys.stdout.flush):
        with suppress(BaseException):
            cleanup()
    os._exit(code)
