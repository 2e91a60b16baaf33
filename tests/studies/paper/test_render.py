"""Printing and writing tables."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from imsm.studies.paper.render import show_status, show_table
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import load_table
from tests.studies.paper.finished import write_run


def test_the_paper_code_table_has_its_own_folder(runs: RunIndex, tmp_path: Path) -> None:
    table, out = load_table("table3"), tmp_path / "out"
    text = io.StringIO()
    for protocol in ("strict", "paper_code"):
        show_table(
            table, runs, scale="mini", seeds=1, protocol=protocol, folder=out, console=Console(file=text, width=100)
        )
    assert "strict protocol" in (out / "table.md").read_text()
    assert "paper_code protocol" in (out / "paper_code" / "table.md").read_text()
    missing = [line for line in text.getvalue().splitlines() if line.startswith("missing: ")]
    assert len(missing) == 4 and "backbone=mini" in missing[0]


def test_the_status_lists_every_run_with_its_command(runs: RunIndex, tmp_path: Path) -> None:
    table = load_table("table3")
    done, missing = required_runs(table, runs, scale="mini", seeds=1)
    write_run(done, runs, known=0.5, seed=0)
    runs.refresh()
    text = io.StringIO()
    show_status(table, runs, scale="mini", seeds=1, folder=tmp_path, console=Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    assert lines[0] == "table3 (mini): 1 done, 1 missing, 0 failed"
    assert [line.split() for line in lines[1:3]] == [["done", done.name], ["missing", missing.name]]
    assert lines[3].strip() == missing.command
