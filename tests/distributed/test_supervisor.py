"""Supervision rules, on small shell processes: who failed first, signals, recorded errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from imsm.distributed import supervisor
from imsm.distributed.supervisor import STOPPED, SignalForwarder, WorkerProcess, first_failed, supervise
from imsm.utils.stop_signals import EXIT_CODES, STOP_SIGNALS


def start(script: str, *, rank: int = 0, **options) -> WorkerProcess:
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    return WorkerProcess(rank=rank, process=process, **options)


def ended(code: int, *, rank: int, at: float, **options) -> WorkerProcess:
    process = subprocess.Popen(["true"])
    process.wait()
    process.returncode = code
    return WorkerProcess(rank=rank, process=process, ended_at=at, **options)


def test_a_failure_ends_the_other_workers_after_the_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_SECONDS", 0.1)
    failed, other = workers = [start("exit 3"), start("sleep 60", rank=1)]
    assert supervise(workers, SignalForwarder()) is False
    assert (failed.code, other.code, other.terminated_by_us) == (3, -signal.SIGTERM, True)
    assert first_failed(workers) is failed


def test_a_worker_that_ignores_sigterm_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "_TERM_SECONDS", 0.2)
    workers = [start("sleep 0.3; exit 1"), start("trap '' TERM; while :; do sleep 1; done", rank=1)]
    supervise(workers, SignalForwarder())
    assert workers[1].code == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(workers[1].process.pid, 0)
            subprocess.run(["sleep", "0.05"], check=True)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_forwarded_as_sigterm(number: int) -> None:
    worker = start("sleep 60")
    with SignalForwarder() as signals:
        os.kill(os.getpid(), number)
        assert supervise([worker], signals) is False
    assert worker.code == -signal.SIGTERM
    assert worker.stop_requested and worker.stopped


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalForwarder() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.pop_received() == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_can_receive_stop_signals_only() -> None:
    worker = start("sleep 60", forwards_all=False)
    worker.send(signal.SIGUSR1)
    assert not worker.stop_requested
    worker.send(signal.SIGINT)
    worker.process.wait()
    assert worker.code == -signal.SIGTERM and worker.stop_requested


@pytest.mark.parametrize("code", EXIT_CODES)
def test_the_exit_code_of_any_stop_signal_is_no_failure(code: int) -> None:
    assert ended(code, rank=0, at=1.0).stopped


def test_a_killed_worker_failed_before_those_that_noticed(tmp_path: Path) -> None:
    record = {"kind": "RuntimeError", "text": "connection lost", "trace": "", "time": 100.0}
    (tmp_path / "0.json").write_text(json.dumps(record))
    noticed = ended(1, rank=0, at=100.2, error_file=tmp_path / "0.json")
    killed = ended(-signal.SIGKILL, rank=1, at=100.5)
    assert first_failed([noticed, killed]) is killed
    assert noticed.failure is not None and noticed.failure.text == "connection lost"


def test_a_stopped_worker_counts_as_failed_only_if_no_other_did() -> None:
    stopped, failed = ended(STOPPED, rank=0, at=1.0), ended(1, rank=1, at=2.0)
    assert first_failed([stopped, failed]) is failed
    assert first_failed([stopped, ended(0, rank=1, at=2.0)]) is stopped
    assert first_failed([ended(0, rank=0, at=1.0)]) is None


def test_a_truncated_error_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text('{"kind": "Val')
    assert ended(1, rank=0, at=1.0, error_file=tmp_path / "0.json").failure is None
