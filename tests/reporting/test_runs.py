"""Which runs are compared, how they are labeled, and how exclusions are explained."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from imsm.evaluation.result import FILE, write_result
from imsm.reporting.runs import (
    build_comparison_set,
    comparable,
    find_comparable_runs,
    headline,
    runs_to_compare,
    with_labels,
)
from imsm.utils.errors import UserError
from tests.helpers.config import result
from tests.reporting.factories import (
    cell,
    evaluate_on_other_examples,
    predictions_file,
    report_data,
    section,
    three_results,
    write_run,
)


def write(root: Path, record: dict[str, Any], *, name: str = "", age: int = 0) -> None:
    folder = root / (name or record["name"])
    folder.mkdir(parents=True)
    write_result(folder, record)
    os.utime(folder / FILE, (1e9 - age, 1e9 - age))


def found_results(record: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    return [found for found, _ in find_comparable_runs(root, record)]


def labels(*results: dict[str, Any]) -> list[str]:
    return [run.label for run in with_labels([(record, Path()) for record in results])]


def test_comparable_runs_differ_only_in_the_method(tmp_path: Path) -> None:
    original, peft, imsm = three_results()
    other_gate = result("imsm", "gate=no_query")
    write(tmp_path, imsm)
    write(tmp_path, other_gate, name="no_query")
    write(tmp_path, peft)
    write(tmp_path, original)
    for name, other in {
        "seed": result("peft", "seed=1"),
        "data": result("peft", "data=mrpc"),
        "examples": result("peft", "peft=lora", test_set="other"),
        "backbone": result("original", "backbone=gemma3_270m"),
    }.items():
        write(tmp_path, other, name=name, age=100)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("{")
    (tmp_path / "unfinished").mkdir()
    assert found_results(imsm, tmp_path) == [original, peft, other_gate]
    assert found_results(peft, tmp_path) == [original, other_gate, imsm]  # by the name of the gate
    assert find_comparable_runs(tmp_path / "nowhere", imsm) == []
    assert find_comparable_runs(tmp_path, original) == []


def test_the_newest_run_of_a_method_is_compared(tmp_path: Path) -> None:
    write(tmp_path, result("peft", points=10.0), name="old", age=50)
    write(tmp_path, result("peft", points=20.0), name="new")
    ((found, _),) = find_comparable_runs(tmp_path, result("imsm"))
    assert found["evaluation"]["tasks"]["webq"]["metrics"]["contain"] == 20.0


def test_a_run_on_the_same_examples_is_preferred_to_a_newer_one(tmp_path: Path) -> None:
    write(tmp_path, result("peft", points=10.0), name="old", age=50)
    write(tmp_path, result("peft", points=20.0, test_set="other"), name="new")
    ((found, _),) = find_comparable_runs(tmp_path, result("imsm"))
    assert found["evaluation"]["tasks"]["webq"]["metrics"]["contain"] == 10.0


def test_results_without_an_identity_are_skipped(tmp_path: Path) -> None:
    old = result("peft")
    del old["identity"]
    write(tmp_path, old)
    assert find_comparable_runs(tmp_path, result("imsm")) == []
    assert find_comparable_runs(tmp_path, old) == []
    with pytest.raises(UserError, match="lacks identity"):
        runs_to_compare(tmp_path, old | {"identity": None}, runs_root=tmp_path)


def test_labels_distinguish_gates_and_baselines() -> None:
    assert labels(*three_results()) == ["original", "peft", "imsm"]
    gates = [result("imsm", "gate=no_query"), result("imsm", "gate=no_gate"), result("imsm")]
    assert labels(*gates) == ["imsm (no_query r8)", "imsm (no_gate)", "imsm (query r8)"]
    baseline = result("peft")
    baseline["config"]["baseline"] = {"name": "logit_mix", "value": 0.5}
    assert labels(baseline) == ["logit mix 0.5"]


def test_scores_are_comparable_on_one_test_set_and_protocol() -> None:
    one, other = result("peft"), result("imsm")
    assert comparable(one, other, "webq") and not comparable(one, other, "cola")
    other["evaluation"]["tasks"]["webq"]["protocol"] = "paper_code"
    assert not comparable(one, other, "webq")
    assert not comparable(one, result("imsm", test_set="other"), "mrpc")


def test_the_headline_falls_back_to_the_first_metric() -> None:
    entry = {"headline": "f1", "metrics": {"accuracy": 1.0, "f1": 2.0}}
    assert headline(entry) == "f1" and headline(entry | {"headline": "bleu"}) == "accuracy"


def test_on_equal_examples_nothing_is_excluded(shared_runs: dict[str, Any]) -> None:
    comparison, data = report_data(shared_runs)
    assert comparison.excluded == comparison.load_errors == []
    assert len(data.baselines) == 2


def test_exclusions_name_tasks_runs_and_commands(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq", "freebaseqa"])
    folder, _, _ = runs["imsm"]
    (line,) = report_data(runs)[0].excluded
    assert "webq and freebaseqa of peft, logit mix 0.25, logit mix 0.75." in line
    assert "mode=evaluate 'evaluation.limit_by_task={webq:60,freebaseqa:60}'" in line
    assert f"imsm baselines {shlex.quote(str(folder))}" in line
    assert line.endswith(f"imsm report {shlex.quote(str(folder))}.")


def test_another_protocol_is_excluded(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    record["evaluation"]["tasks"]["webq"]["protocol"] = "paper_code"
    record["evaluation"]["settings"]["protocol"] = "paper_code"
    write_result(folder, record)
    comparison, data = report_data(runs)
    assert "webq" not in data.forgetting
    (line,) = comparison.excluded
    assert "webq of peft. To include" in line and "evaluation.protocol=strict" in line
    assert "imsm baselines" not in line


def test_a_run_without_a_comparable_task_is_not_shown(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["peft"]
    write_run(folder, record, 1, others=list(record["evaluation"]["tasks"]))
    write_result(folder, record)
    comparison, data = report_data(runs)
    assert [run.label for run in comparison.runs] == ["original", "imsm"]
    assert data.common == data.tasks
    assert "all tasks of peft." in comparison.excluded[0]


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def drop_a_row(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def edit_a_score(path: Path) -> None:
    path.write_text(path.read_text().replace("1.0", "0.0", 1))


@pytest.mark.parametrize(
    ("damage", "text"),
    [(truncate, "changed"), (drop_a_row, "changed"), (edit_a_score, "changed"), (Path.unlink, "is missing")],
)
def test_predictions_that_cannot_be_loaded_are_reported(runs: dict[str, Any], damage: Any, text: str) -> None:
    path = predictions_file(runs["peft"], "webq")
    damage(path)
    folder, record, _ = runs["imsm"]
    (line,) = build_comparison_set(folder, record, runs_root=runs["root"]).load_errors
    assert line.startswith(f"peft: {path}: ") and text in line
    assert "mode=evaluate" in line


def test_missing_predictions_become_dashes_and_change_no_other_number(runs: dict[str, Any]) -> None:
    complete = section(report_data(runs)[1], "averages")
    truncate(predictions_file(runs["peft"], "webq"))
    _, data = report_data(runs)
    averages = section(data, "averages")
    for name in ("stability", "harmonic mean"):
        assert cell(averages, name, run="peft") == "–"
        assert cell(averages, name, run="imsm") == cell(complete, name, run="imsm")
    for name in ("retention average", "plasticity"):
        assert cell(averages, name, run="peft") == cell(complete, name, run="peft")
    assert data.curves == []  # an end of the sweep is missing
    assert cell(section(data, "scores"), "peft", task="webq") == "–"


def test_the_fix_for_a_baseline_is_its_own_command(runs: dict[str, Any]) -> None:
    folder, _, _ = runs["imsm"]
    baseline = folder / "baselines" / "logit_mix-0.25"
    for task in ("webq", "freebaseqa"):
        truncate(predictions_file((baseline, json.loads((baseline / FILE).read_text()), None), task))
    comparison, data = report_data(runs)
    (line,) = comparison.load_errors
    assert line.startswith("logit mix 0.25: ") and "(also freebaseqa)" in line
    assert f"for this baseline: imsm baselines {shlex.quote(str(folder))}" in line
    (curve,) = data.curves
    assert [point.value for point in curve.points] == [None, 0.75, None]
