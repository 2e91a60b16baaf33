"""The ensemble of two seeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imsm.evaluation.result import read_result, write_result
from imsm.studies.baselines.evaluate import BaselineRun, evaluate_baseline
from imsm.studies.baselines.finished_run import FinishedRun, load_finished_run
from imsm.studies.baselines.methods import seed_ensemble
from imsm.utils.errors import UserError
from tests.studies.baselines.finished import predictions


def test_an_adapter_with_itself_responds_as_that_adapter(peft_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(peft_folder, copy)
    result = read_result(copy)
    result["config"]["seed"] = 1
    write_result(copy, result)
    other = load_finished_run(copy, option="--other")
    run = load_finished_run(peft_folder, option="run", other=other)
    result = evaluate_baseline(BaselineRun(seed_ensemble, None), run)
    assert result["config"]["baseline"]["other"] == "copy"
    for task, table in predictions(peft_folder / "baselines" / "seed_ensemble").items():
        tuned = predictions(peft_folder)[task]
        assert table.response.equals(tuned.response)
        assert table.reference_loglik.to_numpy() == pytest.approx(tuned.reference_loglik.to_numpy(), abs=1e-4)


def test_a_second_run_is_required(peft_run: FinishedRun) -> None:
    with pytest.raises(UserError, match=r"seed_ensemble: .*--other"):
        seed_ensemble.check(peft_run)
