"""Commands, exit codes and start-up of `imsm`."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

from imsm.cli import main as module
from imsm.cli.main import COMMANDS, Command, help_text, main
from imsm.utils.errors import RunError, UserError
from tests.helpers.paths import ROOT

HEAVY = ("hydra", "torch", "transformers", "peft", "datasets", "pandas", "matplotlib")


def test_help_has_one_line_per_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == help_text() + "\n"
    listed = [line.split()[0] for line in help_text().splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert max(map(len, help_text().splitlines())) <= 100


def test_every_command_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in COMMANDS if f"| `imsm {name} " not in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_parser_with_its_name(name: str) -> None:
    parser = import_module(f"imsm.cli.{COMMANDS[name].module}").parser()
    assert parser.prog == ("imsm run" if COMMANDS[name].module == "run" else f"imsm {name}")


@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].module != "run"])
def test_command_help_exits_with_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: imsm {name}")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    names = [name for name in COMMANDS if name != "run"]
    code = (
        "import contextlib, io, sys\n"
        "from imsm.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    main([]); main(['run', '--help'])\n"
        f"    for name in {names}:\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            main([name, '--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predictoins"]) == 2
    assert capsys.readouterr().err == "imsm: predictoins: unknown command; did you mean predictions?\n"
    assert main(["method=peft", "seed=1"]) == 2
    assert "did you mean imsm run method=peft seed=1?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "imsm --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (UserError("bad input"), 2), (RunError("NaN"), 1), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(
    error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: list[str]) -> None:
        assert arguments == ["a", "mode=x"]
        if error is not None:
            raise error

    monkeypatch.setitem(sys.modules, "imsm.cli.fake", types.SimpleNamespace(main=run))
    monkeypatch.setitem(module.COMMANDS, "fake", Command("fake", "", ("mode=x",)))
    assert main(["fake", "a"]) == code
    message = capsys.readouterr().err
    assert message.startswith("imsm: ") if error else message == ""
    assert str(error or "") in message


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> None:
        raise KeyError("lost")

    monkeypatch.setitem(sys.modules, "imsm.cli.fake", types.SimpleNamespace(main=run))
    monkeypatch.setitem(module.COMMANDS, "fake", Command("fake", ""))
    with pytest.raises(KeyError):
        main(["fake"])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["completion", "bash"]])
def test_closed_output_ends_quietly(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "imsm", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # argparse ignores the error of an unbuffered write


def test_a_broken_pipe_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> None:
        raise BrokenPipeError

    monkeypatch.setitem(sys.modules, "imsm.cli.fake", types.SimpleNamespace(main=run))
    monkeypatch.setitem(module.COMMANDS, "fake", Command("fake", ""))
    with pytest.raises(BrokenPipeError):
        main(["fake"])


def test_plan_and_download_are_run_with_a_mode() -> None:
    assert COMMANDS["plan"].extra == ("mode=plan",) and COMMANDS["download"].extra == ("mode=download",)
    assert {COMMANDS[name].module for name in ("run", "plan", "download")} == {"run"}
