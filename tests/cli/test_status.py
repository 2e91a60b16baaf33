"""`imsm status`: a table or JSON of all runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.evaluation.result import write_result
from imsm.pipeline.run_status import write_failure
from tests.helpers.config import result
from tests.pipeline.test_runs_overview import write_identity


def test_runs_are_listed_as_text_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    write_result(write_identity(tmp_path / "good"), result("peft", points=61.0))
    write_failure(write_identity(tmp_path / "bad"), error="\x1b[2J gone\x7f", exit_code=1, command="imsm run seed=3")
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert "finished" in text and "2 runs in" in text
    assert "\\x1b[2J gone" in text and "run again: imsm run seed=3" in text and "\x1b" not in text
    assert main(["status", "--json"]) == 0
    text = capsys.readouterr().out
    values = {each["name"]: each for each in json.loads(text)}
    assert values["good"]["state"] == "finished" and values["bad"]["error"] == "\x1b[2J gone\x7f"
    assert "\x1b" not in text and "\x7f" not in text
