"""The scripts in examples/ run."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.slow
def test_trainer_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(ROOT / "examples" / "trainer.py"), run_name="__main__")
    (saved,) = tmp_path.glob("*/model/gate.safetensors")
    assert (saved.parents[1] / "merged" / "config.json").is_file()
    assert "trainable params: " in capsys.readouterr().out
