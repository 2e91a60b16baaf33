"""Stop signals of a process, which imports nothing but the module."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from imsm.utils import stop_signals
from imsm.utils.stop_signals import STOP_SIGNALS

PROGRAM = """
import os, signal, sys, time
from imsm.utils import stop_signals
stop_signals.install()
print("ready", flush=True)
{body}
print("not reached", flush=True)
"""
NAMES = [number.name for number in STOP_SIGNALS]


def program(body: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, timeout=30, **options
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.{0})",
        # neither a finally clause nor a bare except can hold it up
        "\ntry:\n    os.kill(os.getpid(), signal.{0})\nexcept BaseException:\n    pass",
        "\nclass Finalizer:\n    def __del__(self):\n        os.kill(os.getpid(), signal.{0})\nFinalizer()",
        "\nimport threading\nthreading.Timer(0.1, os.kill, [os.getpid(), signal.{0}]).start()\ntime.sleep(20)",
    ],
    ids=["statement", "except", "finalizer", "sleep"],
)
def test_each_signal_ends_the_process_with_one_line_and_its_exit_code(name: str, body: str) -> None:
    done = program(body.format(name))
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stdout == "ready\n"
    assert done.stderr == f"imsm: interrupted by {name}; run the same command again\n"


def test_the_line_says_what_is_kept_and_buffered_output_is_written() -> None:
    body = (
        "print('buffered', end='')\n"
        "with stop_signals.keeping('a is kept'):\n"
        "    with stop_signals.keeping('b is kept'): pass\n"
        "    os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = program(body)
    assert done.stderr == "imsm: interrupted by SIGTERM; a is kept; run the same command again to resume\n"
    assert done.stdout == "ready\nbuffered"


def test_cleanups_run_in_reverse_order_whatever_they_raise() -> None:
    body = (
        "with stop_signals.on_stop(lambda: print('first')), stop_signals.on_stop(lambda: 1 / 0):\n"
        "    with stop_signals.on_stop(lambda: print('left')): pass\n"
        "    with stop_signals.on_stop(lambda: print('second')):\n"
        "        os.kill(os.getpid(), signal.SIGINT)"
    )
    done = program(body)
    assert (done.returncode, done.stdout) == (130, "ready\nsecond\nfirst\n")


def test_a_second_signal_does_not_wait_for_the_cleanup() -> None:
    body = (
        "def cleanup():\n    os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "with stop_signals.on_stop(cleanup): os.kill(os.getpid(), signal.SIGINT)"
    )
    started = time.monotonic()
    done = program(body)
    assert done.returncode == 130 and done.stderr.count("\n") == 1
    assert time.monotonic() - started < 10


def test_a_cleanup_that_hangs_is_cut_off() -> None:
    body = (
        "stop_signals._CLEANUP_SECONDS = 1\n"
        "with stop_signals.on_stop(lambda: time.sleep(20)): os.kill(os.getpid(), signal.SIGHUP)"
    )
    started = time.monotonic()
    assert program(body).returncode == 129
    assert time.monotonic() - started < 10


def test_a_deferred_signal_takes_effect_at_the_end_of_the_block() -> None:
    body = "with stop_signals.deferred():\n    os.kill(os.getpid(), signal.SIGINT); print('whole')"
    done = program(body)
    assert (done.returncode, done.stdout) == (130, "ready\nwhole\n")


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_signal_stays_ignored(name: str) -> None:
    def ignore() -> None:
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    done = program(f"os.kill(os.getpid(), signal.{name})", preexec_fn=ignore)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\nnot reached\n", "")


def test_a_silent_process_leaves_the_line_to_its_parent() -> None:
    done = program("stop_signals.install(silent=True)\nos.kill(os.getpid(), signal.SIGTERM)")
    assert (done.returncode, done.stderr) == (143, "")


def test_once_the_work_is_done_a_signal_changes_nothing() -> None:
    done = program("stop_signals.ignore()\nos.kill(os.getpid(), signal.SIGTERM)")
    assert (done.returncode, done.stdout) == (0, "ready\nnot reached\n")


def test_without_the_handlers_of_a_command_it_is_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals.keeping("x is kept"):
        stop_signals.stop_now(signal.SIGTERM)
    assert stop_signals.exit_code() == 143
    assert "SIGTERM; x is kept" in stop_signals.message()
