"""The table of a sweep: rows, marks, means, missing runs."""

from __future__ import annotations

import io
from typing import Any

import scipy.stats
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
    (found,) = sweep_tables(runs, each_seed=True)
    assert found.table.rows[1][-1] == "failed"
    assert (found.failed, found.missing) == ([("NaN", "imsm run seed=0")], ["imsm run seed=1"])
    assert found.commands == ["failed: NaN", "  run again: imsm run seed=0", "missing: imsm run seed=1"]


def seeds(*points: float | None) -> list[SweepRun]:
    return [
        SweepRun(
            swept={"seed": str(seed), "method": method}, target="gsm8k", about={"seed": f"seed {seed}"}, command="",
            result=None if value is None else result(method, f"seed={seed}", points=value),
        )
        for method in ("original", "peft")
        for seed, value in enumerate(points)
    ]  # fmt: skip


def test_runs_that_differ_in_the_seed_share_a_row_with_the_interval_over_seeds() -> None:
    (found,) = sweep_tables(seeds(40.0, 50.0, 60.0))
    assert found.table.columns[:3] == ["method", "seeds", "gsm8k"] and len(found.table.rows) == 2
    half_width = scipy.stats.t.ppf(0.975, 2) * 10 / 3**0.5
    assert set(found.table.rows[1][2:-2]) == {f"50.0 ± {half_width:.1f}"} and found.table.rows[1][1] == "3"
    assert any("Student" in note for note in found.table.notes)
    assert found.table.caption.endswith("seeds 0, 1, 2")
    (each,) = sweep_tables(seeds(40.0, 50.0, 60.0), each_seed=True)
    assert [row[2] for row in each.table.rows[1:]] == ["40.0", "50.0", "60.0"]


def test_the_mean_is_over_the_finished_seeds() -> None:
    (found,) = sweep_tables(seeds(40.0, None, 60.0))
    row = dict(zip(found.table.columns, found.table.rows[1], strict=True))
    assert row["seeds"] == "2 of 3" and row["gsm8k"].startswith("50.0 ± ") and len(found.missing) == 2


def test_tests_at_chance_are_named() -> None:
    record = result("peft", "peft=lora")
    record["evaluation"]["original"] = {
        name: {**entry, "above_chance": name != "mrpc"} for name, entry in record["evaluation"]["tasks"].items()
    }
    (found,) = sweep_tables([with_result("lora", record)])
    (note,) = [note for note in found.table.notes if "at chance" in note]
    assert "mrpc" in note and "webq" not in note


def test_a_failure_in_markdown_is_text_without_control_characters() -> None:
    failed = SweepRun(swept={}, target="a", about={}, command="c", result=None, failure="<b>\x1b[2J")
    text = render_markdown(sweep_tables([failed]))
    assert r"&lt;b>\x1b[2J" in text and "\x1b" not in text


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
