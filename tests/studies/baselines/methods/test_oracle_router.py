"""The oracle router."""

from __future__ import annotations

from pathlib import Path

from imsm.evaluation.result import read_result
from imsm.studies.baselines.evaluate import BaselineRun, evaluate_baseline
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.methods import oracle_router
from tests.studies.baselines.finished import FORGETTING, assert_same_predictions, original_of, predictions


def test_it_forgets_nothing(peft_folder: Path, peft_run: FinishedRun) -> None:
    result = evaluate_baseline(BaselineRun(oracle_router, None), peft_run)
    routed = predictions(peft_folder / "baselines" / "oracle_router")
    assert_same_predictions(routed["jsonl"], predictions(peft_folder)["jsonl"])
    assert_same_predictions(routed[FORGETTING], predictions(original_of(peft_folder))[FORGETTING])
    original = read_result(original_of(peft_folder))["evaluation"]["tasks"]
    assert result["evaluation"]["tasks"][FORGETTING]["metrics"] == original[FORGETTING]["metrics"]
    assert routed[FORGETTING].gate_mean.eq(1).all() and routed["jsonl"].gate_mean.eq(0).all()
