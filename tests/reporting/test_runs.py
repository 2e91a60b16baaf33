"""What a card sets side by side: the same items by the same protocol, whole; the rest is told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from imsm.cli.main import main
from imsm.evaluation.result import write_result
from imsm.reporting.report_data import ReportData, build_report_data
from imsm.reporting.runs import ComparisonSet, build_comparison_set
from imsm.reporting.score_table import compare
from imsm.reporting.sections.base import Section
from imsm.reporting.sections.order import build_sections
from tests.helpers.config import result
from tests.reporting.factories import items_file, judge_on_others, leave


def beside_of(runs: dict[str, Any]) -> tuple[ComparisonSet, ReportData]:
    folder, record, _ = runs["imsm"]
    beside = build_comparison_set(folder, record, runs_root=runs["root"])
    return beside, build_report_data(beside.arms, beside.controls, beside.seeds)


def part(evidence: ReportData, name: str) -> Section:
    return next(section for section in build_sections(evidence) if section.name == name)


def cell(section: Section, column: str, **where: str) -> str:
    table = section.table
    assert table is not None
    for name, value in where.items():
        table = table[table[name] == value]
    (found,) = table[column]
    return str(found)


def add_seed(runs: dict[str, Any], method: str, *, seed: int, others: tuple[str, ...] = ()) -> None:
    record = result(method, f"seed={seed}")
    folder = runs["root"] / f"{method}-of-seed-{seed}"
    leave(folder, record, 30 + seed, others=others)
    write_result(folder, record)


def test_of_equal_items_nothing_is_left_out(runs: dict[str, Any]) -> None:
    beside, evidence = beside_of(runs)
    assert beside.excluded == beside.load_errors == []
    assert evidence.common == evidence.tasks
    assert len(evidence.controls) == 2


def test_other_items_are_in_no_part_of_the_card(runs: dict[str, Any]) -> None:
    judge_on_others(runs, ["webq", "multirc"])
    beside, evidence = beside_of(runs)
    (average,) = [row for row in compare([a.result for a in beside.arms]).headlines
                  if row.role == "average"]  # fmt: skip
    averages, controls = part(evidence, "averages"), part(evidence, "controls")
    for score in average.scores:
        assert cell(averages, "retention average", arm=score.arm) == f"{score.value:.1f}"
        assert cell(controls, "retention average", arm=score.arm) == f"{score.value:.1f}"
    assert cell(averages, "the paper's average", arm="peft") != "–"
    assert "webq, multirc" in averages.lines[1]
    for arm in ("peft", "logit mix 0.25", "logit mix 0.75"):
        assert cell(controls, "webq", arm=arm) == cell(controls, "multirc", arm=arm) == "–"
        assert cell(controls, "freebaseqa", arm=arm) != "–"
    assert cell(part(evidence, "scores"), "peft", task="webq") == "–"
    protocols = part(evidence, "protocols")
    assert cell(protocols, "peft", task="webq", metric="contain") == "–"
    assert cell(protocols, "imsm", task="webq", metric="contain") != "–"
    kept = {(each.task, each.arm) for each in evidence.kept}
    assert ("webq", "imsm") in kept and ("webq", "peft") not in kept
    assert {trade.stability for trade in evidence.trades if trade.label == "original"} == {100.0}


def test_without_the_target_controls_have_no_place(runs: dict[str, Any]) -> None:
    judge_on_others(runs, ["gsm8k"])
    _, evidence = beside_of(runs)
    assert evidence.curves == []
    averages = part(evidence, "averages")
    assert cell(averages, "the paper's average", arm="peft") == "–"
    assert cell(averages, "plasticity", arm="peft") == "–"
    (placed,) = [trade for trade in evidence.trades if trade.label == "logit mix 0.25"]
    assert placed.target is None and not placed.has_position
    trade = part(evidence, "trade")
    assert "imsm.studies.baselines.base --run" in trade.lines[-1]
    trade.pictures[0].draw()


def test_what_is_left_out_is_told_with_the_commands(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    judge_on_others(runs, ["webq", "freebaseqa"])
    folder, _, _ = runs["imsm"]
    beside, _ = beside_of(runs)
    (line,) = beside.excluded
    assert "webq and freebaseqa of peft, logit mix 0.25, logit mix 0.75." in line
    assert "mode=evaluate 'evaluation.limit_by_task={webq:60,freebaseqa:60}'" in line
    assert f"imsm baselines {shlex.quote(str(folder))}" in line
    assert main(["report", str(folder)]) == 0
    assert "Left out" in capsys.readouterr().out
    assert line in (folder / "report.md").read_text()
    assert "Left out" in (folder / "report.html").read_text()


def test_another_protocol_is_other_scores(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    record["evaluation"]["tasks"]["webq"]["protocol"] = "paper_code"
    record["evaluation"]["settings"]["protocol"] = "paper_code"
    write_result(folder, record)
    beside, evidence = beside_of(runs)
    assert "webq" not in evidence.forgetting
    assert "webq of peft. To compare it" in beside.excluded[0]
    assert "evaluation.protocol=strict" in beside.excluded[0]
    assert "imsm.studies.baselines.base" not in beside.excluded[0]


def test_a_run_of_which_nothing_may_be_compared_is_no_arm_but_told(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    leave(folder, record, 1, others=list(record["evaluation"]["tasks"]))
    write_result(folder, record)
    beside, evidence = beside_of(runs)
    assert [arm.label for arm in beside.arms] == ["original", "imsm"]
    assert evidence.common == evidence.tasks
    assert "all of peft." in beside.excluded[0]


def test_seeds_are_compared_on_the_same_items(runs: dict[str, Any]) -> None:
    for method in ("peft", "imsm"):
        add_seed(runs, method, seed=1)
        add_seed(runs, method, seed=2, others=("webq",) if method == "imsm" else ())
    beside, evidence = beside_of(runs)
    seeds = part(evidence, "seeds")
    assert cell(seeds, "seeds", task="webq", arm="imsm") == "2"
    assert cell(seeds, "seeds", task="webq", arm="peft") == "3"
    assert cell(seeds, "seeds", task="multirc", arm="imsm") == "3"
    assert "webq of imsm of seed 2." in beside.excluded[0]


def test_seeds_that_all_lack_a_task_have_no_test(runs: dict[str, Any]) -> None:
    judge_on_others(runs, ["webq"])
    add_seed(runs, "peft", seed=1)
    add_seed(runs, "imsm", seed=1)
    _, evidence = beside_of(runs)
    seeds = part(evidence, "seeds")
    assert cell(seeds, "seeds", task="webq", arm="peft") == "0"
    assert cell(seeds, "mean", task="webq", arm="peft") == "–"
    assert cell(seeds, "p, Student", task="webq", arm="imsm") == "–"


def test_a_gate_that_lacks_a_task_has_its_picture(runs: dict[str, Any]) -> None:
    record = result("imsm", "gate=no_query")
    folder = runs["root"] / "token"
    leave(folder, record, 40, others=("webq",))
    write_result(folder, record)
    _, evidence = beside_of(runs)
    gate = part(evidence, "gate")
    assert gate.table is not None and len(gate.table) == 5 + 4
    gate.pictures[0].draw()


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def shorten(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("harm", "told"), [(cut, "is damaged"), (shorten, "holds 59 items, not 60"), (Path.unlink, "is not there")]
)
def test_items_that_are_not_whole_are_told(runs: dict[str, Any], harm: Any, told: str) -> None:
    path = items_file(runs["peft"], "webq")
    harm(path)
    folder, record, _ = runs["imsm"]
    (line,) = build_comparison_set(folder, record, runs_root=runs["root"]).load_errors
    assert line.startswith(f"peft: {path}: {told}")
    assert "judge the run again (the same command with mode=evaluate)" in line


def test_items_that_are_not_whole_leave_dashes_and_no_other_number(
    runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = part(beside_of(runs)[1], "averages")
    cut(items_file(runs["peft"], "webq"))
    folder, _, _ = runs["imsm"]
    assert main(["report", str(folder)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imsm: peft: ")
    assert line.removeprefix("imsm: ") in (folder / "report.md").read_text()
    assert "is damaged" in (folder / "report.html").read_text()
    _, evidence = beside_of(runs)
    averages = part(evidence, "averages")
    for name in ("stability", "harmonic"):
        assert cell(averages, name, arm="peft") == "–"
        assert cell(averages, name, arm="imsm") == cell(whole, name, arm="imsm")
    for name in ("retention average", "plasticity"):
        assert cell(averages, name, arm="peft") == cell(whole, name, arm="peft")
    assert evidence.curves == []  # the sweep has lost its end
    assert cell(part(evidence, "scores"), "peft", task="webq") == "–"


def test_of_a_control_the_fix_is_its_own_command(runs: dict[str, Any]) -> None:
    folder, _, _ = runs["imsm"]
    place = folder / "baselines" / "logit_mix-0.25"
    for task in ("webq", "freebaseqa"):
        cut(items_file((place, json.loads((place / "result.json").read_text()), None), task))
    beside, evidence = beside_of(runs)
    (line,) = beside.load_errors
    assert line.startswith("logit mix 0.25: ") and "so it is with freebaseqa" in line
    assert f"a control: imsm baselines {shlex.quote(str(folder))}" in line
    (curve,) = evidence.curves
    assert [trade.value for trade in curve.trades] == [None, 0.75, None]
