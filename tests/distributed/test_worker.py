"""A worker's exit codes and error records, run in this process as a group of one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imsm.distributed import worker
from imsm.distributed.context import DistributedContext
from imsm.distributed.supervisor import STOPPED
from imsm.utils.errors import RunError, UserError


@pytest.fixture
def settings_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Prepare a worker's environment without rendezvous and parent-death signal."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGUSR1,)}
    monkeypatch.setattr(worker, "kill_on_parent_exit", lambda **options: None)
    monkeypatch.setattr(worker, "detect_process_group", lambda: "group")
    monkeypatch.setattr(worker, "join_process_group", lambda group, num_gpus: DistributedContext())
    monkeypatch.setenv(worker.LAUNCHER_PID, "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(worker.ERROR_FILE, str(tmp_path / "error.json"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"device": "cpu", "environment": {"IMSM_TEST_VARIABLE": "set"}}))
    monkeypatch.delenv("IMSM_TEST_VARIABLE", raising=False)
    yield path
    monkeypatch.delenv("IMSM_TEST_VARIABLE", raising=False)
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (UserError("data=x: is bad"), 2), (RunError("stopped"), 1), (ValueError("bug"), 1)]
)
def test_exit_code_and_error_record(settings_path: Path, error: Exception | None, code: int, capsys) -> None:
    def task(settings: dict, dist_context: DistributedContext) -> None:
        if error is not None:
            raise error

    assert worker.run_worker(settings_path, task) == code
    record_path = settings_path.with_name("error.json")
    assert record_path.exists() == (error is not None)
    if error is not None:
        record = json.loads(record_path.read_text())
        assert (record["kind"], record["text"]) == (type(error).__name__, str(error))
        assert type(error).__name__ in record["trace"]
    assert capsys.readouterr().err == ""  # rank 0 leaves printing to the launcher


def test_an_interrupt_is_the_exit_code_of_a_stopped_run(settings_path: Path) -> None:
    def task(settings: dict, dist_context: DistributedContext) -> None:
        raise KeyboardInterrupt

    assert worker.run_worker(settings_path, task) == STOPPED
    assert not settings_path.with_name("error.json").exists()


def test_settings_can_set_the_environment(settings_path: Path) -> None:
    def task(settings: dict, dist_context: DistributedContext) -> None:
        assert os.environ["IMSM_TEST_VARIABLE"] == "set"

    assert worker.run_worker(settings_path, task) == 0


def test_other_ranks_and_workers_without_a_launcher_print_the_error(
    settings_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def task(settings: dict, dist_context: DistributedContext) -> None:
        raise UserError("data=x: is bad")

    monkeypatch.setenv("RANK", "1")
    assert worker.run_worker(settings_path, task) == 2
    assert capsys.readouterr().err == "imsm: data=x: is bad\n"


def test_outside_a_group_it_is_a_user_error(settings_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(worker, "detect_process_group", lambda: None)
    monkeypatch.delenv(worker.ERROR_FILE)
    assert worker.run_worker(settings_path, lambda settings, dist_context: None) == 2
    assert "not started as a worker" in capsys.readouterr().err
