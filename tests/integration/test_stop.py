"""A command that is stopped by a signal, or whose output cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stop_test import QUICK, stop
from tests.helpers.word_run import run_words

COMMAND = [sys.executable, "-m", "imsm.run", *QUICK]
# the phases of a start: parsing, imports of torch and of Hydra, composing, validating, loading
DELAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CASES = [(delay, number) for delay in DELAYS for number in SIGNALS]
FAST = [(0.05, signal.SIGINT), (0.2, signal.SIGTERM), (0.5, signal.SIGHUP)]


@pytest.mark.parametrize(
    ("delay", "number"), [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in CASES]
)
def test_a_signal_ends_a_command_with_one_line_and_its_exit_code(delay: float, number: int, tmp_path: Path) -> None:
    stopped = stop(COMMAND, tmp_path, delay=delay, number=number, from_handlers=True)
    assert stopped.errors() == [], stopped.output
    assert stopped.code == 128 + number


@pytest.mark.slow
def test_a_signal_ends_a_sweep_and_its_jobs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = [*COMMAND, "-m", "sweep=local", "seed=0,1"]
    stopped = stop(sweep, tmp_path, delay=8.0, number=signal.SIGTERM, from_handlers=True)
    assert stopped.errors() == [], stopped.output


@pytest.mark.slow
def test_a_report_reaches_every_terminal_and_pipe(word_files: Path, tmp_path: Path) -> None:
    folder = run_words(word_files, tmp_path, method="original")

    def report(redirection: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
        (folder / "report.md").unlink()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"$0" -m imsm report "$1" {redirection}', sys.executable, str(folder)],
            capture_output=True,
            env=os.environ | {"IMSM_RUNS": str(tmp_path), "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
            timeout=120,
        )
        assert b"Traceback" not in done.stderr and (folder / "report.md").is_file()
        return done

    ascii_only = report("", "ascii")
    assert ascii_only.returncode == 0 and b"original" in ascii_only.stdout and ascii_only.stdout.isascii()
    full = report("> /dev/full", "utf-8")
    assert full.returncode == 1 and full.stderr.decode().startswith("imsm: standard output: cannot be written")
    assert report("| true", "latin-1").returncode in (0, 141)
