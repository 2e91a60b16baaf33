"""Signals during training."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from imsm.distributed.worker import LAUNCHER_PID
from imsm.training.signals import GracefulShutdown


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_deferred_and_the_second_interrupts(number: int, capsys) -> None:
    before = signal.getsignal(number)
    with GracefulShutdown() as shutdown:
        send(number)
        assert shutdown.requested
        assert "stopping after this step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(number) is before


def test_under_a_launcher_a_second_signal_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_PID, "1")
    with GracefulShutdown() as shutdown:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert shutdown.requested


def test_in_an_immediate_block_the_first_signal_interrupts() -> None:
    with GracefulShutdown() as shutdown:
        with pytest.raises(KeyboardInterrupt), shutdown.immediate():
            send(signal.SIGINT)
        assert shutdown.requested


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown() as shutdown:
            send(signal.SIGHUP)
            assert not shutdown.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigusr1_requests_a_checkpoint_only() -> None:
    with GracefulShutdown() as shutdown:
        send(signal.SIGUSR1)
        assert (shutdown.save_requested, shutdown.requested) == (True, False)


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    before, within = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with GracefulShutdown():
            within.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert within == [before]
