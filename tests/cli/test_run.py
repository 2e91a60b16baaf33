"""`python -m imsm.run` as a user meets it: help, errors, exit codes, sweeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import imsm.cli.run
from imsm.cli.run import GROUPS, help_text
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import checkout, conf_folder, runs_root

HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "wandb", "sklearn", "pandas")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imsm.run", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "IMSM_RUNS": str(folder.parent / "runs")},
        timeout=120,
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_help_says_what_there_is(here: Path) -> None:
    done = command(here, "--help")
    assert done.returncode == 0
    for part in ("Usage: python -m imsm.run", "lora", "qwen1_5", "-m method=original,peft,imsm"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert not list(here.iterdir())


def test_help_lists_every_group_of_a_run_and_options_of_ones_own(tmp_path: Path) -> None:
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert set(GROUPS) | {"metric"} == groups
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my_data.yaml").write_text("name: my_data\n")
    assert "my_data" in help_text(tmp_path)


def test_problems_are_told_on_stderr_without_a_traceback(here: Path) -> None:
    done = command(here, "peft=lroa", "gate.rnak=8", "foo")
    assert done.returncode == 2
    assert done.stderr.startswith("imsm: 3 problems in the configuration\n")
    assert "did you mean peft=lora?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(here.iterdir())
    assert not (here.parent / "runs").exists()


def test_problems_of_a_sweep_come_before_its_first_run(here: Path) -> None:
    done = command(here, "-m", "method=original,peft", "gate.rank=4,0")
    assert done.returncode == 2
    assert "gate.rank=0: must be at least 1" in done.stderr
    assert not (here.parent / "runs").exists()


def test_hydras_own_flags_keep_working(here: Path) -> None:
    shown = command(here, "--cfg", "job", "backbone=llama3")
    assert shown.returncode == 0
    assert "meta-llama/Meta-Llama-3-8B" in shown.stdout
    assert command(here, "--info", "searchpath").returncode == 0
    assert "no such option" in command(here, "--cfg", "job", "peft=lroa").stderr
    missing = command(here, "--config-dir", "nowhere")
    assert (missing.returncode, "there is no such folder" in missing.stderr) == (2, True)
    assert not list(here.iterdir())


def test_nothing_heavy_is_imported_for_help_and_errors(here: Path) -> None:
    """The time itself depends on the machine; what takes it are these imports."""
    code = (
        "import sys\n"
        "from imsm.config.compose import Preflight\n"
        "from imsm.utils.paths import conf_folder\n"
        "import imsm.cli.run\n"
        "checks = Preflight(conf=conf_folder())\n"
        "assert checks.problems(['peft=lroa', 'gate.rank=0'], sweep=False)\n"
        "assert not checks.problems(['peft=adalora', 'data=ropes', 'method=imsm'], sweep=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("error", "code"), [(None, 0), (UserError("bad input"), 2), (RunError("NaN"), 1)])
def test_exit_codes_of_one_run(monkeypatch, capsys, tmp_path: Path, error: Exception | None, code: int) -> None:
    _stub_flow(monkeypatch, lambda config: _raise(error))
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    assert run_main(monkeypatch, "method=peft") == code
    told = capsys.readouterr().err
    assert told == ("" if error is None else f"imsm: {error}\n")


def test_an_unexpected_error_is_shown_with_its_traceback(monkeypatch, capsys, tmp_path: Path) -> None:
    _stub_flow(monkeypatch, lambda config: _raise(KeyError("lost")))
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    assert run_main(monkeypatch, "method=peft") == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("KeyError: 'lost'\n")


def test_a_sweep_goes_on_after_a_member_and_keeps_its_worst_code(monkeypatch, capsys, tmp_path: Path) -> None:
    seen = []

    def carry_out(config) -> None:
        seen.append(config.method.name)
        _raise({"original": RunError("first"), "peft": UserError("second")}.get(seen[-1]))

    _stub_flow(monkeypatch, carry_out)
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "-m", "method=original,peft,imsm") == 2
    assert seen == ["original", "peft", "imsm"]
    told = capsys.readouterr()
    assert told.err == "imsm: first\nimsm: second\n"
    assert "sweep of 3: 1 done, 2 failed" in told.out
    assert "failed: python -m imsm.run method=original\n" in told.out
    assert not list(tmp_path.iterdir())


def test_stopped_by_hand(monkeypatch, tmp_path: Path) -> None:
    seen = []

    def carry_out(config) -> None:
        seen.append(config.method.name)
        raise KeyboardInterrupt

    _stub_flow(monkeypatch, carry_out)
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    assert run_main(monkeypatch, "-m", "method=original,peft") == 130
    assert seen == ["original"]


def test_modules_of_ones_own_are_found_beside_their_yamls(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "imsm_test_own.py").write_text("def own(*, target_modules: list[str]): ...\n")
    (tmp_path / "peft" / "own.yaml").write_text("name: own\n_target_: imsm_test_own.own\nroles: [attention_query]\n")
    seen = []
    _stub_flow(monkeypatch, seen.append)
    monkeypatch.setattr(sys, "name_or_path", list(sys.path))
    assert run_main(monkeypatch, "--config-dir", str(tmp_path), "peft=own") == 0
    (config,) = seen
    assert (config.peft.target, config.config_dir) == ("imsm_test_own.own", str(tmp_path))


def test_the_runs_lie_in_one_place(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "a" / ".." / "b"))
    assert runs_root() == tmp_path / "b"
    monkeypatch.delenv("IMSM_RUNS")
    monkeypatch.chdir(tmp_path)
    own = checkout()
    assert own is not None and (own / "conf") == conf_folder()
    assert runs_root() == own / "runs"
    monkeypatch.setattr("imsm.utils.paths.PACKAGE", tmp_path / "site-packages" / "imsm")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert runs_root() == tmp_path / "share" / "imsm" / "runs"


def run_main(monkeypatch, *arguments: str) -> int | str | None:
    """Run the command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["imsm", *arguments])
    with pytest.raises(SystemExit) as end:
        imsm.run.main()
    return end.value.code


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _stub_flow(monkeypatch, carry_out) -> None:
    """Stand in for the run's flow, which needs torch."""
    import types

    flow = types.ModuleType("imsm.pipeline.run")
    flow.carry_out = lambda config, *, runs_root: carry_out(config)
    monkeypatch.setitem(sys.modules, "imsm.pipeline.run", flow)
