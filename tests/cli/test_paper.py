"""`imsm paper`: rejected arguments, the status, and a speed table that is already measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.studies.paper.speed import write_speed
from tests.studies.paper.test_speed import measured


def test_a_wrong_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    for arguments, message in (
        (["status", "tabel1"], "tabel1: no such table"),
        (["show", "table3", "--seeds", "0"], "--seeds 0"),
        (["show", "table3", "--jobs", "0"], "--seeds 1 --jobs 0"),
    ):
        assert main(["paper", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imsm: {message}")


def test_the_status_counts_the_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    assert main(["paper", "status", "table3"]) == 0
    assert "table3 (mini): 0 done, 2 missing, 0 failed" in capsys.readouterr().out


def test_speed_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_speed(measured(), tmp_path / "table5" / "mini")
    assert main(["paper", "run", "table5", "--output", str(tmp_path)]) == 0
    assert "0.75" in capsys.readouterr().out
    assert (tmp_path / "table5" / "mini" / "table.md").is_file()


def test_a_damaged_speed_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table5" / "mini" / "speed.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    for action in ("show", "status"):
        assert main(["paper", action, "table5", "--output", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imsm: {path}: ") and line.endswith("remove it")
