"""A run that is started here leaves signals such that what it starts still gets them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imsm.pipeline import run as flow
from imsm.pipeline.start import start_run
from tests.helpers.config import config


@pytest.fixture
def as_a_process_begins():
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("as_a_process_begins")
def test_a_request_for_a_checkpoint_outside_training_kills_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def carry_out(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGUSR1)  # would end a process that does not handle it
        done.append(True)

    monkeypatch.setattr(flow, "carry_out", carry_out)
    start_run(config(), runs_root=tmp_path)
    assert done == [True]


@pytest.mark.usefixtures("as_a_process_begins")
def test_processes_started_after_a_run_do_not_ignore_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "carry_out", lambda *_, **__: None)
    start_run(config(), runs_root=tmp_path)
    ask = "import signal; print(signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN)"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "False"
