"""Baselines through the evaluator: values, cached responses, results."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from imsm.evaluation.result import read_result
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.evaluate import (
    BaselineRun,
    baseline_fingerprint,
    baseline_runs,
    call_hook,
    evaluate_baseline,
    evaluate_tuned,
)
from imsm.studies.baselines.finished_run import FinishedRun, load_finished_run
from imsm.studies.baselines.registry import load_baseline
from imsm.utils.errors import UserError
from imsm.utils.json_files import write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir, read_training
from tests.studies.baselines.finished import assert_same_predictions, original_of, predictions


def test_a_baseline_runs_at_its_grid_or_at_given_values(peft_run: FinishedRun) -> None:
    logit_mix, router = load_baseline("logit_mix"), load_baseline("oracle_router")
    assert [run.name for run in baseline_runs(logit_mix, peft_run, None)] == [
        f"logit_mix-{value}" for value in ("0.25", "0.50", "0.75")
    ]
    names = [run.name for run in baseline_runs(logit_mix, peft_run, [0.5, 0.125, 0.5])]
    assert names == ["logit_mix-0.50", "logit_mix-0.125"]
    assert [run.name for run in baseline_runs(router, peft_run, [0.5])] == ["oracle_router"]


@pytest.mark.parametrize("name", ["logit_mix", "probability_mix", "adapter_scale"])
def test_values_0_and_1_are_the_cached_original_and_tuned_responses(
    peft_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(FinishedRun, "model", lambda run: pytest.fail("a model was loaded"))
    run = load_finished_run(peft_folder, option="run")
    tuned, original = predictions(peft_folder), predictions(original_of(peft_folder))
    for value, expected in ((0.0, tuned), (1.0, original)):
        if name == "adapter_scale":
            value = 1 - value
        result = evaluate_baseline(BaselineRun(load_baseline(name), value), run)
        assert result == read_result(peft_folder / "baselines" / f"{name}-{value:.2f}")
        assert any(entry["trained_on"] for entry in result["evaluation"]["tasks"].values()) == (expected is tuned)
        for task, table in predictions(peft_folder / "baselines" / f"{name}-{value:.2f}").items():
            assert_same_predictions(table, expected[task])
            assert not tuned[task].response.equals(original[task].response)


def test_a_baseline_writes_a_result_of_its_own(peft_run: FinishedRun) -> None:
    result = evaluate_baseline(BaselineRun(load_baseline("entropy_mix"), None), peft_run)
    assert (result["method"], result["trainable_parameters"]["gate"]) == ("baseline", 0)
    assert result["config"]["baseline"] == result["identity"]["baseline"]
    assert result["config"]["baseline"]["name"] == "entropy_mix" and result["config"]["baseline"]["value"] is None
    assert result["evaluation"]["original"] == peft_run.result["evaluation"]["original"]


def test_the_adapter_of_an_imsm_run_is_evaluated_without_its_gate(
    peft_run: FinishedRun, imsm_run: FinishedRun
) -> None:
    assert evaluate_tuned(peft_run) is peft_run.result
    evaluate_tuned(imsm_run)
    evaluate_baseline(BaselineRun(load_baseline("logit_mix"), 0.0), imsm_run)
    own = predictions(imsm_run.folder)
    tuned, mixed = (predictions(imsm_run.folder / "baselines" / name) for name in ("tuned", "logit_mix-0.00"))
    for task in own:
        assert_same_predictions(mixed[task], tuned[task])
        assert not tuned[task].reference_loglik.equals(own[task].reference_loglik)


def test_responses_of_another_adapter_are_not_reused(peft_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / peft_folder.name
    shutil.copytree(peft_folder, folder)
    baseline_run = BaselineRun(load_baseline("logit_mix"), 0.4)
    before = baseline_fingerprint(baseline_run, load_finished_run(folder, option="run"))
    run = RunDir(folder)
    path = run.adapter / "adapter_model.safetensors"
    save_file({name: value + 0.3 for name, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match="changed since it was saved"):
        baseline_fingerprint(baseline_run, load_finished_run(folder, option="run"))
    write_hashed_json(run.trained, read_training(run) | {MODEL_HASH: write_manifest(run.model)})
    assert baseline_fingerprint(baseline_run, load_finished_run(folder, option="run")) != before


def test_a_missing_hook_returns_the_default() -> None:
    baseline = SimpleNamespace(INFO=BaselineInfo(name="x", meaning="a test"), values=lambda run: (run,))
    assert call_hook(baseline, "values", "a run", None) == ("a run",)
    assert call_hook(baseline, "cache_key", "a run", {}) == {}
