"""What a report reads: common tasks, marks, averages, trade-off points."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imsm.evaluation.result import write_result
from imsm.reporting.report_data import ReportData, baselines_as_good, build_report_data
from imsm.reporting.runs import runs_to_compare
from tests.reporting.factories import evaluate_on_other_examples, report_data, section, write_run


def test_the_target_is_first_and_every_task_is_common(data: ReportData) -> None:
    assert data.target == data.tasks[0] == "gsm8k"
    assert data.common == data.tasks and data.forgetting == data.tasks[1:]
    assert data.name("gsm8k") == "gsm8k (target)" and data.name("webq") == "webq"


def test_a_forgetting_test_that_was_trained_on_is_in_no_average_and_no_family(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["tasks"]["webq"]["trained_on"] = True
    data = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    assert data.trained_on == data.marked == {"webq"} and data.name("webq") == "webq †"
    assert "webq" not in data.forgetting and "webq" in data.common
    assert all(each.holm_p_value is None for each in data.comparisons if each.task == "webq")
    assert any(each.holm_p_value is not None for each in data.comparisons)


def test_a_learned_target_that_is_also_a_test_is_marked(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["settings"]["tasks"] = ["gsm8k", "webq"]
    data = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    assert data.name("gsm8k") == "gsm8k (target) †"
    assert data.trained_on == set() and all(each.holm_p_value is not None for each in data.comparisons)


def test_a_mean_over_a_missing_task_is_none(runs: dict[str, Any]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    _, data = report_data(runs)
    peft = data.by_method["peft"]
    assert data.mean(peft, ["webq", "mrpc"]) is None and data.mean(peft, ["mrpc"]) is not None
    assert data.mean(peft, []) is None
    assert "webq" not in data.common
    retained = {(each.task, each.run) for each in data.retentions}
    assert ("webq", "imsm") in retained and ("webq", "peft") not in retained


def test_without_predictions_scores_remain(runs: dict[str, Any]) -> None:
    for method in ("original", "peft", "imsm"):
        for path in runs[method][0].glob("evaluation/*/predictions.jsonl"):
            path.unlink()
    _, data = report_data(runs)
    assert data.comparisons == data.retentions == [] and data.score_intervals == {}
    assert data.mean(data.focus, data.forgetting) is not None


def test_a_swept_baseline_runs_from_peft_to_the_original(data: ReportData) -> None:
    (curve,) = data.curves
    assert curve.baseline == "logit_mix"
    assert [point.label for point in curve.points] == ["peft", "logit mix 0.25", "logit mix 0.75", "original"]
    first, last = curve.points[0], curve.points[-1]
    assert first.plasticity == pytest.approx(100) and last.plasticity == pytest.approx(0)
    assert last.stability == pytest.approx(100.0)
    assert curve.hypervolume > 0


def test_the_original_alone_has_no_pairs_and_no_points(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["original"]
    data = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    assert data.pairs == [] and data.points == [] and data.curves == []


def test_baselines_of_the_peft_run_are_compared_with_imsm(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    peft_folder, peft, _ = runs["peft"]
    scaled = json.loads(json.dumps(peft)) | {"method": "baseline", "name": "adapter_scale"}
    scaled["config"]["baseline"] = scaled["identity"]["baseline"] = {"name": "query_router", "value": None}
    baseline_folder = peft_folder / "baselines" / "query_router"
    # the scores of IMSM itself
    write_run(baseline_folder, scaled | {"method": "imsm"}, 2)
    write_result(baseline_folder, scaled)
    _, data = report_data(runs)
    assert [run.label for run in data.peft_baselines] == ["query router on peft"]
    assert data.matches["imsm"][-1:] == ["query router on peft"]
    assert "query router on peft" in (baselines_as_good(folder, record, runs_root=runs["root"]) or [])
    rows = section(data, "baselines").table
    assert rows is not None and rows.column("run")[-1] == "query router on peft"
