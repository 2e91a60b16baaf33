"""Status files of a sweep's jobs and its summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.pipeline.sweeps.status import (
    JobOutcome,
    SweepDir,
    format_best_trial,
    job_command,
    latest_attempt,
    mark_missing_failed,
    new_attempt,
    summary,
    sweep_dir,
)
from imsm.utils.errors import UserError
from tests.helpers.damage import DAMAGES


def test_statuses_are_read_in_order(tmp_path: Path) -> None:
    sweep = SweepDir(folder=tmp_path)
    outcomes = {
        number: JobOutcome(number=number, overrides=[f"seed={number}"], state="done", objective=number / 2)
        for number in (10, 2)
    }
    for outcome in outcomes.values():
        sweep.write_status(outcome)
    assert list(sweep.read_statuses().items()) == sorted(outcomes.items())


def test_a_job_without_a_status_has_failed(tmp_path: Path) -> None:
    sweep = SweepDir(folder=tmp_path)
    sweep.write_status(JobOutcome(number=1, overrides=["seed=1"], state="done"))
    outcomes = mark_missing_failed(sweep.read_statuses(), [["seed=0"], ["seed=1"]])
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    assert [outcome.exit_code for outcome in outcomes] == [1, 0]
    lines = summary(outcomes, config_dir=None)
    assert lines[:2] == ["sweep of 2: 1 done, 1 failed", "  failed: imsm run seed=0"]


def test_skipped_jobs_are_counted_apart() -> None:
    outcomes = [JobOutcome(number=n, overrides=[], state=state) for n, state in enumerate(("done", "skipped"))]
    assert summary(outcomes, config_dir=None) == ["sweep of 2: 1 done, 0 failed, 1 skipped (finished before)"]


def test_the_command_of_a_job_is_quoted_and_has_no_sweep_option() -> None:
    command = job_command(["sweep=local", "evaluation.tasks=[a,b]", "seed=1"], config_dir=Path("my conf"))
    assert command == "imsm run --config-dir 'my conf' 'evaluation.tasks=[a,b]' seed=1"


def test_the_folder_depends_on_the_overrides_only(tmp_path: Path) -> None:
    def folder(*overrides: str, config_dir: Path | None = None) -> Path:
        return sweep_dir(tmp_path, name="local", overrides=overrides, config_dir=config_dir)

    assert folder("a=1", "b=2") == folder("b=2", "a=1")
    assert len({folder("a=1"), folder("a=2"), folder("a=1", config_dir=tmp_path)}) == 3
    assert latest_attempt(folder("a=1")) is None
    attempt = new_attempt(folder("a=1"))
    assert latest_attempt(folder("a=1")) == attempt


def test_the_best_trial_is_read_from_optunas_file(tmp_path: Path) -> None:
    assert "no trial" in format_best_trial(tmp_path)
    (tmp_path / "optimization_results.yaml").write_text("best_params: {gate.rank: 4}\nbest_value: 61.25\n")
    assert format_best_trial(tmp_path).startswith("best: gate.rank=4 gives 61.2 points (")


def test_a_search_with_two_goals_shows_the_trials_that_no_other_beats(tmp_path: Path) -> None:
    trials = ["{params: {gate.rank: 4}, values: [60.0, 41.0]}", "{params: {gate.rank: 8}, values: [70.0, 40.0]}"]
    (tmp_path / "optimization_results.yaml").write_text("solutions:\n" + "".join(f"- {text}\n" for text in trials))

    lines = format_best_trial(tmp_path).splitlines()

    assert lines[1:3] == ["  70.0 and 40.0 points: gate.rank=8", "  60.0 and 41.0 points: gate.rank=4"]


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"missing", "flipped"}))
def test_a_damaged_file_of_a_sweep_is_named(tmp_path: Path, damage: str) -> None:
    attempt = new_attempt(tmp_path)
    attempt.write_status(JobOutcome(number=0, overrides=[], state="done"))
    DAMAGES[damage](attempt.folder / "status" / "0.json")
    with pytest.raises(UserError, match=r"0\.json"):
        attempt.read_statuses()
    results = tmp_path / "optimization_results.yaml"
    results.write_text("best_params: {seed: 1}\nbest_value: 50.0\n")
    assert "seed=1 gives 50.0" in format_best_trial(tmp_path)
    DAMAGES[damage](results)
    with pytest.raises(UserError, match=r"optimization_results\.yaml"):
        format_best_trial(tmp_path)
