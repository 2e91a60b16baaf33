"""`imsm report`: render a report again."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.cli.main import main
from tests.reporting.factories import write_runs


def test_a_run_is_reported_and_a_folder_without_a_run_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_runs(tmp_path)["peft"][0]
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert str(folder / "report.html") in capsys.readouterr().out
    for wrong in (folder / "nothing", tmp_path):
        assert main(["report", str(wrong)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(wrong) in line
