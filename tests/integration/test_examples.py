"""The scripts in examples/ run, and their commands are valid."""

from __future__ import annotations

import runpy
import shlex
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.config import config
from tests.helpers.paths import ROOT


@pytest.mark.slow
def test_trainer_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(ROOT / "examples" / "trainer.py"), run_name="__main__")
    (saved,) = tmp_path.glob("*/model/gate.safetensors")
    assert (saved.parents[1] / "merged" / "config.json").is_file()
    assert "trainable params: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["skypilot.yaml", "dstack.yml"])
def test_the_commands_for_clouds_are_valid(name: str) -> None:
    text = (ROOT / "examples" / name).read_text()
    settings = yaml.safe_load(text)
    commands = settings.get("commands") or settings["run"].splitlines()
    (command,) = [line for line in commands if "imsm run" in line]
    run_config = config(*shlex.split(command.partition("imsm run ")[2]))
    assert (run_config.backbone.name, run_config.resume, run_config.trainer.save_minutes) == ("llama3", "auto", 10)
    assert "IMSM_RUNS" in text and "/runs" in text
