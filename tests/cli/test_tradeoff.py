"""`imsm tradeoff`: output and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.cli.main import main
from tests.reporting.factories import write_runs


def test_the_table_and_the_plot_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs")
    folder = str(runs["imsm"][0])
    for name in ("t.md", "t.csv", "t.png"):
        assert main(["tradeoff", folder, "--keep", "50", "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 100
    assert "Recommended: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--output", "t.txt"], "must end in .md"), (["--keep", "101"], "must be a percentage"), ([], "no finished run")],
)
def test_bad_input_is_one_line(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tradeoff", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
