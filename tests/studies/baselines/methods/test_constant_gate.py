"""A constant gate in place of the learned one."""

from __future__ import annotations

import pandas
import pytest

from imsm.studies.baselines.evaluate import baseline_runs, evaluate_baseline
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.methods import constant_gate
from imsm.utils.errors import UserError
from tests.studies.baselines.finished import predictions


def test_the_constant_is_the_mean_of_the_gate(imsm_run: FinishedRun) -> None:
    rows = pandas.concat(predictions(imsm_run.folder).values())
    weights = rows.tokens.clip(lower=1)
    value = round((rows.gate_mean * weights).sum() / weights.sum(), 2)
    (baseline_run,) = baseline_runs(constant_gate, imsm_run, None)
    assert baseline_run.name == f"constant_gate-{value:.2f}"
    evaluate_baseline(baseline_run, imsm_run)
    for table in predictions(imsm_run.folder / "baselines" / baseline_run.name).values():
        assert table.gate_mean.to_numpy() == pytest.approx(value, abs=1e-3)


def test_a_run_without_a_gate_is_rejected(peft_run: FinishedRun) -> None:
    with pytest.raises(UserError, match=r"constant_gate: .* has no gate"):
        constant_gate.check(peft_run)
