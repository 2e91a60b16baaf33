"""One stream where the gate is decided, at another threshold than the run's."""

from __future__ import annotations

import pytest

from imsm.studies.baselines.evaluate import baseline_runs, evaluate_baseline
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.methods import gate_skip
from imsm.utils.errors import UserError
from tests.studies.baselines.finished import predictions


def test_decided_examples_have_the_response_of_their_stream(imsm_run: FinishedRun) -> None:
    (baseline_run,) = baseline_runs(gate_skip, imsm_run, [0.49])
    tasks = evaluate_baseline(baseline_run, imsm_run)["evaluation"]["tasks"]
    own = predictions(imsm_run.folder)
    for task, table in predictions(imsm_run.folder / "baselines" / baseline_run.name).items():
        decided = dict.fromkeys(("tuned", "original", "both"), 0)
        streams = {name: imsm_run.responses(task, name)[0] for name in ("tuned", "original")}
        for row, gates in enumerate(own[task].gate_per_token):
            choice = "tuned" if gates[0] < 0.49 else "original" if gates[0] > 0.51 else "both"
            decided[choice] += 1
            expected = own[task].response.iloc[row] if choice == "both" else streams[choice][row]["text"]
            assert table.response.iloc[row] == expected
        assert tasks[task]["decided"] == decided
    assert imsm_run.model().skip_threshold is None


def test_a_run_without_a_gate_is_rejected(peft_run: FinishedRun) -> None:
    with pytest.raises(UserError, match=r"gate_skip: .* has no gate"):
        gate_skip.check(peft_run)
