"""The table of a sweep: rows, marks, means, missing runs."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from imsm.reporting.sweep_table import SweepRun, render_markdown, render_terminal, sweep_tables
from tests.helpers.config import result


def sweep_run(peft: str, method: str, *, points: float | None = 50.0, **changed: Any) -> SweepRun:
    found = None if points is None else result(method, f"peft={peft}", points=points, **changed)
    return SweepRun(
        swept={"peft": peft, "method": method},
        target="gsm8k",
        about={"backbone": "mini", "seed": "seed 0"},
        command=f"imsm run peft={peft} method={method}",
        result=found,
    )


def with_result(peft: str, record: dict[str, Any]) -> SweepRun:
    swept = {"peft": peft, "method": "peft"}
    return SweepRun(swept=swept, target="gsm8k", about={}, command="", result=record)


def test_one_row_per_run_after_the_original() -> None:
    runs = [
        sweep_run("lora", "original", points=80.0),
        sweep_run("lora", "peft", points=40.0),
        sweep_run("lora", "imsm", points=60.0),
        sweep_run("ia3", "peft", points=None),
    ]
    (found,) = sweep_tables(runs)
    assert found.table.columns[:3] == ["peft", "method", "gsm8k"]
    assert [row[:2] for row in found.table.rows] == [
        ["original", ""], ["lora", "peft"], ["lora", "imsm"], ["ia3", "peft"],
    ]  # fmt: skip
    assert found.table.column("retention average") == ["80.0", "40.0", "60.0", "–"]
    assert found.table.rows[2][-2:] == ["1,050", "1m 15s"]
    assert found.missing == ["imsm run peft=ia3 method=peft"]
    assert "missing: imsm run peft=ia3 method=peft" in render_markdown([found])


def test_a_failed_run_is_listed_with_its_error_and_command() -> None:
    runs = [
        SweepRun(
            swept={"seed": str(seed), "method": "peft"}, target="gsm8k", about={}, command=f"imsm run seed={seed}",
            result=None, failure=failure,
        )
        for seed, failure in enumerate(["NaN", None])
    ]  # fmt: skip
    (found,) = sweep_tables(runs)
    assert found.table.rows[1][-1] == "failed"
    assert (found.failed, found.missing) == ([("NaN", "imsm run seed=0")], ["imsm run seed=1"])
    assert found.commands == ["failed: NaN", "  run again: imsm run seed=0", "missing: imsm run seed=1"]


def test_a_test_that_a_run_was_trained_on_is_in_no_average() -> None:
    replayed = result("peft", "peft=lora", points=10.0)
    entry = replayed["evaluation"]["tasks"]["webq"]
    entry["metrics"] = dict.fromkeys(entry["metrics"], 90.0)
    entry["trained_on"] = True
    (found,) = sweep_tables([sweep_run("lora", "original", points=80.0), with_result("lora", replayed)])
    assert found.table.column("webq") == ["80.0", "90.0†"]
    assert found.table.column("retention average") == ["80.0", "10.0"]
    (mean,) = [note for note in found.table.notes if note.startswith("Retention average")]
    assert "webq" not in mean and "freebaseqa" in mean


def test_another_protocol_is_not_compared() -> None:
    paper_code = result("peft", "peft=ia3")
    for entry in paper_code["evaluation"]["tasks"].values():
        entry |= {"protocol": "paper_code", "headline": "paper_code", "metrics": {"paper_code": 1.0}}
    other = with_result("ia3", paper_code)
    (found,) = sweep_tables([sweep_run("lora", "peft"), other])
    assert set(found.table.rows[2][2:-2]) == {"–"}
    assert "Protocol: paper_code." not in found.table.notes
    (found,) = sweep_tables([other, sweep_run("lora", "peft")])
    assert set(found.table.rows[2][2:-2]) == {"–"}
    assert "Protocol: paper_code." in found.table.notes


def test_other_examples_are_not_compared() -> None:
    (found,) = sweep_tables([sweep_run("lora", "peft"), sweep_run("ia3", "peft", test_set="b")])
    assert set(found.table.rows[2][1:-2]) == {"–"}


def test_every_target_has_a_table() -> None:
    swept = {"peft": "lora", "method": "peft", "data": "mrpc"}
    other = SweepRun(swept=swept, target="mrpc", about={}, command="imsm run data=mrpc", result=None)
    found = sweep_tables([sweep_run("lora", "peft"), sweep_run("lora", "imsm"), other])
    assert [each.table.caption.split(" · ")[0] for each in found] == ["trained on gsm8k", "trained on mrpc"]


def test_names_are_complete_in_a_narrow_terminal() -> None:
    runs = [sweep_run("loramoe_blc_replay", "original"), sweep_run("loramoe_blc_replay", "peft")]
    stream = io.StringIO()
    render_terminal(sweep_tables([*runs, sweep_run("lora", "peft")]), console=Console(file=stream, width=40))
    printed = stream.getvalue()
    assert "loramoe_blc_replay" in printed and "original" in printed and "…" not in printed
