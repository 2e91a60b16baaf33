"""`imsm compare`: the table of a sweep's runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.config.identity import run_name
from imsm.evaluation.result import write_result
from tests.helpers.config import config, result


@pytest.fixture(autouse=True)
def runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_finished_runs_have_scores_and_missing_runs_commands(
    runs_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs_root / run_name(config("peft=ia3", "method=peft"))
    folder.mkdir(parents=True)
    write_result(folder, result("peft", "peft=ia3", points=12.5))
    output = tmp_path / "tables" / "table.md"
    assert main(["compare", "peft=lora,ia3", "method=original,peft", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "12.5" in printed and "12.5" in output.read_text()
    assert "imsm run peft=lora method=peft" in printed
    assert "imsm run peft=ia3 method=peft" not in printed
    assert printed.count("method=original") == 1
    assert output.read_text().count("original") == 2  # one row, and its command


def test_a_result_in_the_folder_of_another_run_is_not_shown_as_its_score(
    runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs_root / run_name(config("method=peft"))
    folder.mkdir(parents=True)
    write_result(folder, result("peft", "seed=1", points=12.5))
    assert main(["compare", "method=peft", "seed=0,1"]) == 0
    printed = capsys.readouterr().out
    assert "12.5" not in printed and "another run" in printed


def test_wrong_overrides_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "peft=lroa,ia3"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_command_of_a_missing_run_can_be_pasted_into_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = "evaluation.tasks=[target, webq]"
    assert main(["compare", "peft=ia3", "method=peft", tasks]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "missing" in each]
    assert shlex.split(line)[-3:] == ["peft=ia3", "method=peft", tasks], line


def test_json_has_every_run_with_its_state(runs_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs_root / run_name(config("peft=ia3", "method=peft"))
    folder.mkdir(parents=True)
    write_result(folder, result("peft", "peft=ia3", points=12.5))
    assert main(["compare", "peft=lora,ia3", "method=peft", "--json"]) == 0
    missing, finished = json.loads(capsys.readouterr().out)
    assert (missing["state"], missing["command"]) == ("missing", "imsm run peft=lora method=peft")
    assert (finished["state"], finished["settings"]["peft"], finished["target"]) == ("finished", "ia3", "gsm8k")
    points = {value for entry in finished["tasks"].values() for value in entry["metrics"].values()}
    assert points == {12.5} and finished["tasks"]["gsm8k"]["role"] == "target"
