"""The launcher: one failed worker ends all, and the first failure is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from imsm.distributed.launcher import launch
from imsm.utils import stop_signals
from imsm.utils.errors import RunError, UserError

PLAIN, MEETING = "tests.distributed.programs.plain", "tests.distributed.programs.meeting"


def start(folder: Path, *actions: str) -> None:
    settings = {"folder": str(folder), "actions": actions}
    launch(settings, run_dir=folder / "run", nproc_per_node=len(actions), module=PLAIN)


def ready(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """Wait for the workers; return what each wrote when it was up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        files = [folder / f"ready-{rank}" for rank in range(count)]
        if all(file.is_file() and file.read_text() for file in files):
            return [json.loads(file.read_text()) for file in files]
        time.sleep(0.02)
    raise AssertionError("the workers did not start")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def all_ended(folder: Path, *, within: float) -> bool:
    deadline = time.monotonic() + within
    while any(is_running(worker["pid"]) for worker in ready(folder)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def send(folder: Path, *numbers: int) -> threading.Thread:
    """Send signals to this process, the launcher, once the workers are up."""

    def act() -> None:
        ready(folder)
        for number in numbers:
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_successful_launch_leaves_no_files(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start(tmp_path, "end", "end")
    first, second = ready(tmp_path)
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "1", "1")
    assert first["WORLD_SIZE"] == "2"
    assert int(first["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert capfd.readouterr().out == "rank 0: end\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_worker_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError) as failure:
        start(tmp_path, "ignore_signals", "die")
    assert str(failure.value).startswith("process 1 of 2 was killed by SIGKILL; the last checkpoint is kept; ")
    (log,) = (tmp_path / "run" / "processes").glob("*/1.log")
    assert str(log) in str(failure.value)
    assert log.read_text() == "rank 1: die\n"
    assert time.monotonic() - started < 20
    assert all_ended(tmp_path, within=0.1)
    assert not list(tmp_path.glob("run/processes/*/run.json"))


def test_an_exit_code_is_reported_with_the_rank(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"process 0 of 2 ended with exit code 3$"):
        start(tmp_path, "exit", "wait")
    assert all_ended(tmp_path, within=0.1)


def test_each_signal_reaches_every_worker_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = send(tmp_path, signal.SIGUSR1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "wait", "wait")
    thread.join()
    for rank in (0, 1):
        received = json.loads((tmp_path / f"received-{rank}").read_text())
        # SIGINT would print a traceback of a worker without handlers
        assert received == [signal.SIGUSR1, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run").exists()


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    thread = send(tmp_path, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "ignore_signals", "ignore_signals")
    thread.join()
    assert all_ended(tmp_path, within=0.1)
    assert "are kept in" in stop_signals.message()


def test_no_worker_outlives_its_launcher(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.programs.starter", str(tmp_path)]
    launcher = subprocess.Popen(command)
    workers = ready(tmp_path)
    assert all(is_running(worker["pid"]) for worker in workers)
    launcher.kill()
    launcher.wait()
    assert all_ended(tmp_path, within=5)


def test_an_unwritable_run_dir_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run_dir=.*run: cannot be written"):
        start(tmp_path, "end", "end")


@pytest.mark.slow
def test_workers_communicate_and_the_first_failure_is_raised(tmp_path: Path, capfd) -> None:
    settings = {"folder": str(tmp_path), "action": "communicate", "fails": True, "device": "cpu"}
    with pytest.raises(RunError) as failure:
        launch(settings, run_dir=tmp_path / "run", nproc_per_node=2, module=MEETING)
    assert str(failure.value).startswith("process 1 of 2 failed: ValueError: rank 1 failed (log: ")
    for rank in (0, 1):
        received = json.loads((tmp_path / f"received-{rank}.json").read_text())
        assert received == [["I am 0", "I am 1"], 7, 2, rank]
        # gloo's connections: 127.0.0.1, not an address that other machines can reach
        assert set(json.loads((tmp_path / f"listening-{rank}.json").read_text())) == {"0100007F"}
    (log,) = (tmp_path / "run" / "processes").glob("*/1.log")
    assert "ValueError: rank 1 failed" in log.read_text()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_user_error_is_raised_without_output_or_files(tmp_path: Path, capfd) -> None:
    with pytest.raises(UserError, match=r"^data=x: is bad$"):
        launch({"action": "reject"}, run_dir=tmp_path / "run", nproc_per_node=2, module=MEETING)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "run").exists()
