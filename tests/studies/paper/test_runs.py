"""The runs of a table: validation, and running the missing ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from imsm.studies.paper.runs import RunIndex, RunRef, required_runs, run_missing, validate_runs
from imsm.studies.paper.spec import list_tables, load_table
from tests.studies.paper.finished import write_run


def missing_run(root: Path, name: str, *overrides: str) -> RunRef:
    return RunRef(
        overrides=overrides, name=name, folder=root / name, state="missing", result=None, failure=None, trained=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list_tables())
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_run_of_a_table_is_valid(runs: RunIndex, name: str, scale: str) -> None:
    validate_runs(load_table(name), runs, scale=scale)


def test_equal_rows_of_the_miniature_are_one_run(runs: RunIndex, tmp_path: Path) -> None:
    table3 = load_table("table3")
    assert len(required_runs(table3, runs, scale="mini", seeds=1)) == 2
    assert len(required_runs(table3, runs, scale="mini", seeds=3)) == 6
    assert len(required_runs(table3, runs, scale="paper", seeds=1)) == 6


def test_an_edited_result_is_shown_as_failed_with_the_fix(runs: RunIndex) -> None:
    table = load_table("table3")
    wanted = next(iter(required_runs(table, runs, scale="mini", seeds=1)))
    write_run(wanted, runs, known=0.5, seed=0)
    runs.refresh()
    assert runs.find(wanted.overrides).state == "done"
    path = wanted.folder / "result.json"
    path.write_text(path.read_text().replace('"num_examples": 50', '"num_examples": 51', 1))
    runs.refresh()
    found = runs.find(wanted.overrides)
    assert (found.state, found.result) == ("failed", None)
    assert found.failure is not None and str(path) in found.failure and "mode=evaluate" in found.failure


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = [missing_run(tmp_path, "a", "peft=lorra"), missing_run(tmp_path, "b", "--help")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=lines.append) == ["a"]
    failure = json.loads((tmp_path / "a" / "failure.json").read_text())
    assert "lorra" in failure["error"] and failure["exit_code"] == 2
    assert not (tmp_path / "b" / "failure.json").exists()
    assert any("b: done" in line for line in lines)


def test_a_killed_run_does_not_stop_the_others_and_an_interrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$3" in big) kill -9 $$;; hand) exit 130;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    lines: list[str] = []
    wanted = [missing_run(tmp_path, "big", "big"), missing_run(tmp_path, "small", "small")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=lines.append) == ["big"]
    failure = json.loads((tmp_path / "big" / "failure.json").read_text())
    assert "SIGKILL" in failure["error"] and failure["exit_code"] == 137
    assert any("small: done" in line for line in lines)

    lines.clear()
    with pytest.raises(KeyboardInterrupt):
        run_missing(
            [missing_run(tmp_path, "hand", "hand"), missing_run(tmp_path, "small", "small")],
            log_dir=tmp_path / "logs",
            jobs=1,
            log=lines.append,
        )
    assert not any("small" in line for line in lines)
    assert not (tmp_path / "hand" / "failure.json").exists()
