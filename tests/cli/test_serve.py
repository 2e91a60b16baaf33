"""`imsm serve`: wrong options are one line, a signal ends the server, and nothing is written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.serving.app import API_KEY
from tests.helpers.word_run import run_words


@pytest.fixture(scope="module")
def run(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_words(word_files, tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def runs_root(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(run.parent))
    monkeypatch.delenv(API_KEY, raising=False)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nothing-here"], "no finished run"),
        (["{run}", "--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["{run}", "--max-batch", "0"], "--max-batch 0: must be at least 1"),
        (["{run}", "--host", "0.0.0.0"], "set IMSM_API_KEY to a key"),
        (["{run}", "--host", "no.such.host.invalid"], "set IMSM_API_KEY to a key"),
        (["{run}", "{run}", "--port", "0"], "another run named {run} is given"),
    ],
)
def test_wrong_options(run: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert part.format(run=run.name) in error_of([each.format(run=run.name) for each in arguments], capsys)


def test_an_address_in_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port {port}: cannot be bound" in error_of([run.name, "--port", str(port)], capsys)


def test_missing_packages(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # it alone is imported again: new packages would stay as attributes of the old ones
    monkeypatch.delitem(sys.modules, "imsm.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'imsm[serve]'" in error_of([run.name], capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_server(run: Path, number: signal.Signals, code: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    command = [sys.executable, "-m", "imsm", "serve", run.name, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert server.stdout is not None and server.stderr is not None
    try:
        address = next(found.group(1) for line in server.stdout if (found := re.search(r"API (\S+);", line)))
        with urllib.request.urlopen(f"{address}/models", timeout=30) as response:
            assert run.name.encode() in response.read()
    finally:
        server.send_signal(number)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == code and "Traceback" not in errors
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/models", timeout=5)
