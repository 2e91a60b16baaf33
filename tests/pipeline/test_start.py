"""Where a run executes: in this process or in new ones; SIGUSR1 outside training is harmless."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imsm.pipeline import start
from imsm.pipeline.start import start_run
from imsm.utils.errors import UserError
from tests.helpers.config import config


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of `run_experiment`, which is not executed; SIGUSR1 has its default handler."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(start, "run_experiment", lambda config, **keywords: calls.append(keywords))
    monkeypatch.setattr(start, "visible_gpus", lambda: 0)
    return calls


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of `launch`, which starts nothing."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        start, "launch", lambda settings, **rest: calls.append({"settings": json.loads(json.dumps(settings)), **rest})
    )
    monkeypatch.setattr(start, "detect_process_group", lambda: None)
    return calls


@pytest.fixture
def default_signals() -> Iterator[None]:
    handler = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, handler)


@pytest.mark.usefixtures("default_signals")
def test_a_checkpoint_request_outside_training_does_not_kill_the_process(
    tmp_path: Path, runs: list[dict[str, Any]]
) -> None:
    start_run(config(), runs_root=tmp_path, overrides=["gate.rank=4"])
    signal.raise_signal(signal.SIGUSR1)  # with the default handler the process would die
    assert runs == [{"runs_root": tmp_path, "command": "imsm run gate.rank=4"}]


@pytest.mark.usefixtures("default_signals", "runs")
def test_processes_started_afterwards_do_not_ignore_the_signal(tmp_path: Path) -> None:
    start_run(config(), runs_root=tmp_path)
    code = "import signal; print(signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_one_process_without_deepspeed_runs_here(
    tmp_path: Path, runs: list[dict[str, Any]], launches: list[dict[str, Any]]
) -> None:
    start_run(config(), runs_root=tmp_path)
    assert (runs, launches) == ([{"runs_root": tmp_path, "command": None}], [])


def test_deepspeed_runs_in_new_processes_with_the_saved_configuration(
    tmp_path: Path, runs: list[dict[str, Any]], launches: list[dict[str, Any]]
) -> None:
    pytest.importorskip("deepspeed")
    run_config = config("engine=zero2", "engine.nproc_per_node=2", "engine.device=cpu")
    start_run(run_config, runs_root=tmp_path)
    (launch,) = launches
    assert (launch["nproc_per_node"], launch["run_dir"].parent, runs) == (2, tmp_path, [])
    assert launch["settings"]["config"] == json.loads(json.dumps(run_config.to_dict()))


def test_a_missing_deepspeed_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: list[dict[str, Any]]
) -> None:
    run_config = config("engine=zero2", "engine.device=cpu")
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^engine=zero2: requires DeepSpeed; pip install"):
        start_run(run_config, runs_root=tmp_path)
    assert launches == []


def test_gpus_are_checked_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launches: list[dict[str, Any]]
) -> None:
    pytest.importorskip("deepspeed")
    checks: list[dict[str, Any]] = []
    monkeypatch.setattr(start, "visible_gpus", lambda: 8)
    monkeypatch.setattr(start, "check_gpus_free", lambda **keywords: checks.append(keywords))
    start_run(config("engine=auto"), runs_root=tmp_path)
    assert [list(check.values()) for check in checks] == [[8, "auto"]]
    assert (launches[0]["nproc_per_node"], launches[0]["settings"]["device"]) == (8, "cuda")
