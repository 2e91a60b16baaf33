"""`imsm continual`: folders and their order; the tables are tested in tests/pipeline/test_continual.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.cli.main import main


def test_the_folders_are_passed_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Path, ...]] = []
    monkeypatch.setattr(
        "imsm.reporting.continual.report.write_sequence_report", lambda *folders: calls.append(folders)
    )
    assert main(["continual", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert calls == [(tmp_path / "b", tmp_path / "a")]


def test_a_folder_without_a_sequence_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["continual", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imsm: ") and str(tmp_path) in line
