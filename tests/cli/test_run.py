"""`imsm run`: help, errors, exit codes and sweeps of runs in one process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imsm.cli.run import GROUPS, help_text
from imsm.config.schema import RunConfig
from imsm.config.sweep import GROUP
from imsm.pipeline.sweeps.status import FOLDER
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import conf_folder
from tests.helpers.cli import imsm_run, replace_experiment

HEAVY = ("torch", "transformers", "peft")
UNUSED = ("datasets", "evaluate", "wandb", "deepspeed", "submitit", "optuna", "sklearn", "matplotlib")


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
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_help_lists_options_and_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert imsm_run(monkeypatch, "-m", "--help") == 0
    text = capsys.readouterr().out
    for part in ("Usage: imsm run", "lora", "qwen1_5", "-m method=original,peft,imsm"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_lists_every_group_and_custom_options(tmp_path: Path) -> None:
    groups = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    assert set(GROUPS) | {"metric"} == groups
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my_data.yaml").write_text("name: my_data\n")
    assert "my_data" in help_text(tmp_path)


def test_bad_values_are_reported_together_without_a_traceback(cwd: Path) -> None:
    done = command(cwd, "gate.rank=0", "trainer.num_epochs=0", "seed=-1")
    assert done.returncode == 2
    assert done.stderr.startswith("imsm: 3 ")
    for key in ("gate.rank=0", "trainer.num_epochs=0", "seed=-1"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not list(cwd.iterdir())
    assert not (cwd.parent / "runs").exists()


def test_errors_of_a_sweep_are_reported_before_its_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    assert imsm_run(monkeypatch, "-m", "method=original,peft", "gate.rank=4,0") == 2
    assert "gate.rank=0" in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--cfg", "job", "backbone=llama3"], "meta-llama/Meta-Llama-3-8B"),
        (["--cfg=job", "--package", "peft", "peft=ia3"], "name: ia3"),
        (["--info", "searchpath"], "| main"),
        (["--hydra-help"], "== Flags =="),
    ],
)
def test_flags_are_passed_to_hydra(
    flags: list[str], part: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], runs: Path
) -> None:
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))  # Hydra adds one for this stdout
    code: int | str | None
    try:
        code = imsm_run(monkeypatch, *flags)
    except SystemExit as end:  # Hydra exits after --hydra-help
        code = end.code
    assert code == 0
    assert part in capfd.readouterr().out
    assert not list(runs.parent.iterdir())


def test_names_are_checked_before_the_configuration_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    assert imsm_run(monkeypatch, "--cfg", "job", "peft=lroa") == 2
    assert "did you mean peft=lora?" in capsys.readouterr().err
    assert imsm_run(monkeypatch, "--config-dir", "nowhere") == 2
    assert "--config-dir nowhere" in capsys.readouterr().err


def test_errors_are_found_without_heavy_imports(cwd: Path) -> None:
    """The time depends on the machine; these imports take most of it."""
    code = (
        "import sys\n"
        "import imsm.cli.run\n"
        "from imsm.config.compose import ConfigComposer\n"
        "composer = ConfigComposer()\n"
        "assert composer.validate(['peft=lroa'], sweep=False)\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert composer.validate(['gate.rank=0'], sweep=False)\n"  # reads the signature of PEFT's config
        f"print([name for name in {(*UNUSED, 'pandas')} if name in sys.modules])\n"
        "import imsm.pipeline.sweeps.job\n"
        f"print([name for name in {UNUSED} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.stdout.split() == ["[]", "[]"], done.stdout + done.stderr


@pytest.mark.parametrize(("error", "code"), [(None, 0), (UserError("bad input"), 2), (RunError("NaN"), 1)])
def test_exit_code_of_one_run(
    error: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    replace_experiment(monkeypatch, lambda config: _raise(error))
    assert imsm_run(monkeypatch, "method=peft") == code
    assert capsys.readouterr().err == ("" if error is None else f"imsm: {error}\n")
    assert FOLDER not in os.environ


def test_an_unexpected_error_is_printed_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    replace_experiment(monkeypatch, lambda config: _raise(KeyError("lost")))
    assert imsm_run(monkeypatch, "method=peft") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("KeyError: 'lost'\n")


def test_a_sweep_continues_after_a_failed_job_and_returns_the_worst_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    methods, groups = [], set()

    def experiment(config: RunConfig) -> None:
        methods.append(config.method.name)
        groups.add(os.environ[GROUP])
        _raise({"original": RunError("first"), "peft": UserError("second")}.get(methods[-1]))

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, "-m", "method=original,peft,imsm") == 2
    assert methods == ["original", "peft", "imsm"]
    (group,) = groups
    assert group.startswith("method-") and GROUP not in os.environ
    captured = capsys.readouterr()
    assert captured.err == "imsm: first\nimsm: second\n"
    assert "sweep of 3: 1 done, 2 failed" in captured.out
    assert "failed: imsm run method=original\n" in captured.out
    assert {path.name for path in runs.parent.iterdir()} <= {"runs"}


def test_an_interrupt_stops_the_sweep(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    methods = []

    def experiment(config: RunConfig) -> None:
        methods.append(config.method.name)
        raise KeyboardInterrupt

    replace_experiment(monkeypatch, experiment)
    assert imsm_run(monkeypatch, "-m", "method=original,peft") == 130
    assert methods == ["original"]


def test_custom_options_precede_the_shipped_ones_and_find_their_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: Path
) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "imsm_test_gate.py").write_text("from imsm.models.siamese.gate import Gate as CustomGate\n")
    shipped = (conf_folder() / "gate" / "query.yaml").read_text()
    custom = shipped.replace("imsm.models.siamese.gate.Gate", "imsm_test_gate.CustomGate").replace(
        "rank: 8", "rank: 5"
    )
    (tmp_path / "gate" / "query.yaml").write_text(custom)
    configs: list[RunConfig] = []
    replace_experiment(monkeypatch, configs.append)
    assert imsm_run(monkeypatch, "--config-dir", str(tmp_path), "gate=query") == 0
    (config,) = configs
    assert (config.gate.target, config.gate.rank) == ("imsm_test_gate.CustomGate", 5)
    assert config.config_dir == str(tmp_path)
    assert imsm_run(monkeypatch, "gate=query") == 0
    assert configs[1].gate.target == "imsm.models.siamese.gate.Gate"


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def test_a_key_without_effect_is_named_but_not_in_a_sweep_over_methods(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_experiment(monkeypatch, lambda config: None)
    assert imsm_run(monkeypatch, "method=peft", "gate.rank=4") == 0
    assert capsys.readouterr().err == "imsm: gate.rank=4: no effect in this run; omit it\n"
    assert imsm_run(monkeypatch, "-m", "method=peft,imsm", "gate.rank=4") == 0
    assert "no effect" not in capsys.readouterr().err


def test_a_plan_is_one_line_of_json_per_run(
    monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imsm_run(monkeypatch, "mode=plan", "method=original,imsm", "-m", "--json") == 0
    original, trained = map(json.loads, capsys.readouterr().out.splitlines())
    assert original["name"].startswith("mini-original") and trained["trainable"]["gate"] > 0
    assert all(item["size"] is None or item["size"] > 0 for items in trained["memory"].values() for item in items)
    assert not runs.exists()


def test_json_is_for_plans(monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imsm_run(monkeypatch, "--json") == 2
    assert "--json: is for imsm plan" in capsys.readouterr().err
