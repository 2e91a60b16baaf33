"""The table over a sweep's runs: rows, marks, means, what is missing; and its command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imsm.cli.main import main
from imsm.config.identity import run_name
from imsm.evaluation.result import write_result
from imsm.reporting.sweep_table import SweepRun, render_markdown, render_terminal, sweep_tables
from tests.helpers.config import config, result


def member(peft: str, method: str, *, points: float | None = 50.0, **changed: Any) -> SweepRun:
    found = None if points is None else result(method, f"peft={peft}", points=points, **changed)
    return SweepRun(
        swept={"peft": peft, "method": method},
        target="gsm8k",
        about={"backbone": "mini", "seed": "seed 0"},
        command=f"imsm run peft={peft} method={method}",
        result=found,
    )


def cells(rows: list[list[str]], *start: str) -> list[str]:
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_a_row_per_run_and_the_original_on_top() -> None:
    members = [
        member("lora", "original", points=80.0),
        member("lora", "peft", points=40.0),
        member("lora", "imsm", points=60.0),
        member("ia3", "peft", points=None),
    ]
    (found,) = sweep_tables(members)
    assert found.names[:3] == ["peft", "method", "gsm8k"]
    assert [row[:2] for row in found.rows] == [
        ["original", ""], ["lora", "peft"], ["lora", "imsm"], ["ia3", "peft"],
    ]  # fmt: skip
    kept = found.names.index("kept")
    assert [row[kept] for row in found.rows] == ["80.0", "40.0", "60.0", "–"]
    assert cells(found.rows, "lora", "imsm")[kept + 1 :] == ["1,050", "1m 15s"]
    assert found.missing == ["peft=ia3 method=peft"]
    assert "missing: imsm run peft=ia3 method=peft" in render_markdown([found])


def test_means_are_over_the_same_tests_in_every_row() -> None:
    """A run that was trained on a forgetting test takes that test out of every row's mean."""
    replayed = result("peft", "peft=lora", points=10.0)
    entry = replayed["evaluation"]["tasks"]["webq"]
    entry["metrics"] = dict.fromkeys(entry["metrics"], 90.0)
    entry["trained_on"] = True
    members = [
        member("lora", "original", points=80.0),
        SweepRun(
            swept={"peft": "lora", "method": "peft"}, target="gsm8k", about={}, command="",
            result=replayed,
        ),
    ]  # fmt: skip
    (found,) = sweep_tables(members)
    kept, webq = found.names.index("kept"), found.names.index("webq")
    assert found.rows[1][webq] == "90.0†"
    assert [row[kept] for row in found.rows] == ["80.0", "10.0"]
    (mean,) = [note for note in found.notes if note.startswith("kept")]
    assert "webq" not in mean and "freebaseqa" in mean


def test_another_protocol_is_not_compared() -> None:
    released = result("peft", "peft=ia3")
    for entry in released["evaluation"]["tasks"].values():
        entry |= {"protocol": "paper_code", "headline": "paper_code", "metrics": {"paper_code": 1.0}}
    other = SweepRun(
        swept={"peft": "ia3", "method": "peft"}, target="gsm8k", about={}, command="",
        result=released,
    )  # fmt: skip
    (found,) = sweep_tables([member("lora", "peft"), other])
    assert set(found.rows[2][2:-2]) == {"–"}
    assert not any("protocol released" in note for note in found.notes)
    (found,) = sweep_tables([other, member("lora", "peft")])
    assert set(found.rows[2][2:-2]) == {"–"}
    assert "judged by the protocol released." in found.notes


def test_other_items_are_not_compared() -> None:
    members = [member("lora", "peft"), member("ia3", "peft", test_set="b")]
    (found,) = sweep_tables(members)
    assert set(found.rows[2][1:-2]) == {"–"}


def test_a_table_per_target() -> None:
    members = [member("lora", "peft"), member("lora", "imsm")]
    other = SweepRun(
        swept={"peft": "lora", "method": "peft", "data": "mrpc"}, target="mrpc", about={},
        command="imsm run data=mrpc", result=None,
    )  # fmt: skip
    assert [t.title.split(" · ")[0] for t in sweep_tables([*members, other])] == [
        "trained on gsm8k", "trained on mrpc",
    ]  # fmt: skip


def test_the_command_reads_what_runs_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    chosen = config("peft=ia3", "method=peft")
    folder = tmp_path / "runs" / run_name(chosen)
    folder.mkdir(parents=True)
    write_result(folder, result("peft", "peft=ia3", points=12.5))
    output = tmp_path / "made" / "table.md"
    code = main(["compare", "peft=lora,ia3", "method=original,peft", "--output", str(output)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "12.5" in printed and "12.5" in output.read_text()
    assert "imsm run peft=lora method=peft" in printed
    assert "imsm run peft=ia3 method=peft" not in printed
    assert printed.count("method=original") == 1
    assert output.read_text().count("original") == 2  # one row, and one command that makes it


def test_wrong_overrides_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "peft=lroa,ia3"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_names_stay_whole_in_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    members = [member("loramoe_blc_replay", "original"), member("loramoe_blc_replay", "peft")]
    members.append(member("lora", "peft"))
    render_terminal(sweep_tables(members), console=Console(width=40))
    printed = capsys.readouterr().out
    assert "loramoe_blc_replay" in printed and "original" in printed and "…" not in printed


def test_a_missing_runs_command_can_be_pasted_into_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    tasks = "evaluation.tasks=[target, webq]"
    assert main(["compare", "peft=ia3", "method=peft", tasks]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "missing" in each]
    assert shlex.split(line)[-3:] == ["peft=ia3", "method=peft", tasks], line
