"""The launcher: what ends one process ends them all, and the one that failed first is named."""

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
from imsm.utils.errors import RunError, UserError

PLAIN, MEETING = "tests.distributed.programs.plain", "tests.distributed.programs.meeting"


def start(folder: Path, *do: str) -> None:
    settings = {"folder": str(folder), "do": do}
    launch(settings, folder=folder / "run", processes=len(do), module=PLAIN)


def ready(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """What each worker wrote when it was up."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        files = [folder / f"ready-{rank}" for rank in range(count)]
        if all(file.is_file() and file.read_text() for file in files):
            return [json.loads(file.read_text()) for file in files]
        time.sleep(0.02)
    raise AssertionError("the workers did not come up")


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(folder: Path, *, within: float) -> bool:
    """Whether all workers end in that time."""
    until = time.monotonic() + within
    while any(runs(each["pid"]) for each in ready(folder)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def send(folder: Path, *numbers: int) -> threading.Thread:
    """Send this process, the launcher, signals once the workers are up."""

    def act() -> None:
        ready(folder)
        for number in numbers:
            time.sleep(0.3)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_run_that_goes_well_leaves_nothing_behind(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start(tmp_path, "end", "end")
    first, second = ready(tmp_path)
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "1", "1")
    assert first["WORLD_SIZE"] == "2"
    assert int(first["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert capfd.readouterr().out == "rank 0 says end\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RunError) as failure:
        start(tmp_path, "deaf", "die")
    assert str(failure.value).startswith(
        "process 1 of 2 was killed by SIGKILL; the last checkpoint is kept; give the same command "
        "again to go on (what it said: "
    )
    (log,) = (tmp_path / "run" / "processes").glob("*/1.log")
    assert str(log) in str(failure.value)
    assert log.read_text() == "rank 1 says die\n"
    assert time.monotonic() - began < 20
    assert gone(tmp_path, within=0.1)
    assert not list(tmp_path.glob("run/processes/*/run.json"))


def test_a_process_that_ends_with_a_code_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"process 0 of 2 ended with exit code 3$"):
        start(tmp_path, "exit", "wait")
    assert gone(tmp_path, within=0.1)


def test_a_signal_reaches_every_process_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = send(tmp_path, signal.SIGUSR1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "wait", "wait")
    thread.join()
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"seen-{rank}").read_text())
        assert seen == [signal.SIGUSR1, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run").exists()


def test_a_second_interrupt_kills(tmp_path: Path, capfd) -> None:
    thread = send(tmp_path, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, "deaf", "deaf")
    thread.join()
    assert gone(tmp_path, within=0.1)
    assert "killed at once; the last checkpoint is kept" in capfd.readouterr().err


def test_no_process_outlives_its_launcher(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.programs.starter", str(tmp_path)]
    launcher = subprocess.Popen(command)
    workers = ready(tmp_path)
    assert all(runs(each["pid"]) for each in workers)
    launcher.kill()
    launcher.wait()
    assert gone(tmp_path, within=5)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run_dir=.*run: cannot be written"):
        start(tmp_path, "end", "end")


@pytest.mark.slow
def test_processes_meet_and_the_first_failure_is_told(tmp_path: Path, capfd) -> None:
    settings = {"folder": str(tmp_path), "do": "talk", "breaks": True, "device": "cpu"}
    with pytest.raises(RunError) as failure:
        launch(settings, folder=tmp_path / "run", processes=2, module=MEETING)
    assert str(failure.value).startswith("process 1 of 2 failed: ValueError: the second one broke (what it said: ")
    for rank in (0, 1):
        heard = json.loads((tmp_path / f"heard-{rank}.json").read_text())
        assert heard == [["I am 0", "I am 1"], 7, 2, rank]
    (log,) = (tmp_path / "run" / "processes").glob("*/1.log")
    assert "ValueError: the second one broke" in log.read_text()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_bad_input_is_told_once(tmp_path: Path, capfd) -> None:
    settings = {"do": "refuse"}
    with pytest.raises(UserError, match=r"^data=x: is bad$"):
        launch(settings, folder=tmp_path / "run", processes=2, module=MEETING)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "run").exists()
