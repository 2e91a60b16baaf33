"""One job of a sweep: its mode decides what runs, and a failure ends only this job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imsm.config.schema import RunConfig
from imsm.evaluation.result import write_result
from imsm.pipeline.run_status import read_failure, run_dir_of
from imsm.pipeline.sweeps import job
from imsm.pipeline.sweeps.job import SweepJob
from imsm.pipeline.sweeps.status import JobOutcome, SweepDir
from imsm.utils.errors import RunError, UserError
from tests.helpers.config import composed, config, result

Execute = Callable[[RunConfig], None]


@pytest.fixture
def run_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[float | None, JobOutcome]]:
    """Execute a job whose training is replaced by a function; return its value and its status."""
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))

    def execute(train: Execute, *overrides: str) -> tuple[float | None, JobOutcome]:
        monkeypatch.setattr(job, "_current_job", lambda: (3, [*overrides, "sweep=none"], 1))
        monkeypatch.setattr(job, "run_distributed", lambda *_, **__: False)
        monkeypatch.setattr(job, "run_experiment", lambda run_config, **_: train(run_config))
        sweep = SweepDir(folder=tmp_path / "sweep")
        value = SweepJob(config_dir=None, sweep=sweep, several=True)(composed(*overrides))
        return value, sweep.read_statuses()[3]

    return execute


def fail(error: BaseException) -> Execute:
    def execute(run_config: RunConfig) -> None:
        raise error

    return execute


def finish(run_config: RunConfig) -> None:
    """Write a result with 50 points for every task."""
    folder = run_dir_of(run_config, runs_root=job.runs_root())
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, result("peft", points=50.0))


def test_a_finished_job_returns_the_headline_score_of_its_target(run_job: Callable) -> None:
    value, status = run_job(finish, "method=peft")
    assert (value, status.state, status.objective) == (50.0, "done", 50.0)
    assert run_job(finish, "method=peft")[1].state == "skipped"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("key=1: is wrong"), 2, "key=1: is wrong"),
        (RunError("the loss is nan"), 1, "the loss is nan"),
        (ZeroDivisionError("by\nnothing"), 1, "ZeroDivisionError: by nothing"),
        (SystemExit(3), 1, "SystemExit: 3"),
    ],
)
def test_a_failure_is_recorded_in_the_sweep(
    run_job: Callable, error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value, status = run_job(fail(error), "method=peft")
    assert value is None
    assert (status.state, status.exit_code, status.error) == ("failed", code, message)
    assert ("Traceback" in capsys.readouterr().err) is not isinstance(error, UserError | RunError)


def test_a_failure_stays_in_the_run_folder_until_the_run_succeeds(run_job: Callable, tmp_path: Path) -> None:
    folder = run_dir_of(config("method=peft", "seed=1"), runs_root=tmp_path / "runs")
    folder.mkdir(parents=True)
    run_job(fail(ZeroDivisionError("nothing")), "method=peft", "seed=1")
    failure = read_failure(folder)
    assert failure is not None and failure["exit_code"] == 1
    assert failure["command"].endswith("method=peft seed=1")
    run_job(lambda run_config: None, "method=peft", "seed=1")
    assert read_failure(folder) is None


def test_a_folder_with_other_files_gets_no_failure_record(run_job: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    _, status = run_job(fail(ValueError("other files")), f"run_dir={folder}")
    assert status.state == "failed" and not list(folder.iterdir())


def test_an_invalid_configuration_fails_with_exit_code_2(run_job: Callable) -> None:
    _, status = run_job(finish, "method=peft", "trainer.num_epochs=0")
    assert status.exit_code == 2 and "trainer.num_epochs=0" in (status.error or "")


def test_a_plan_trains_nothing_and_writes_nothing(
    run_job: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, status = run_job(fail(AssertionError("trained")), "mode=plan")
    assert status.state == "done"
    assert "trainable parameters: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_submitit_can_requeue_a_preempted_job(run_job: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", "/somewhere")
    with pytest.raises(SystemExit):
        run_job(fail(SystemExit(-1)), "method=peft")


def test_a_sequence_runs_its_stages(run_job: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences: list[list[str]] = []

    def run_stages(run_config: RunConfig, *, runs_root: Path, overrides: list[str]) -> None:
        sequences.append(json.loads(json.dumps([run_config.task_sequence, overrides])))

    monkeypatch.setattr(job, "run_stages", run_stages)
    _, status = run_job(fail(AssertionError("not one run")), "task_sequence=[mrpc,cola]")
    assert status.state == "done"
    assert sequences == [[["mrpc", "cola"], ["task_sequence=[mrpc,cola]"]]]
