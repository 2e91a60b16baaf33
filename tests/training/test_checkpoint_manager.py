"""Which checkpoint to resume from, which ones are kept, and the best one as the final model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.training.checkpoint import TrainingState, list_checkpoints
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.utils.errors import UserError
from tests.helpers.damage import flip_bit, truncate
from tests.training.tiny_run import IDENTITY, TinyRun, assert_equal_trainables, stopped_run


def manager_of(run: TinyRun, **options: Any) -> CheckpointManager:
    return run.checkpoint_manager(**{"metric_for_best_model": "validation_loss", **options})


def save_steps(
    run: TinyRun, manager: CheckpointManager, losses: dict[int, float | None]
) -> dict[int, dict[str, torch.Tensor]]:
    """Save a checkpoint per validation loss, with other parameters each; return the parameters."""
    values = {}
    for step, loss in losses.items():
        with torch.no_grad():
            for parameter in run.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        values[step] = {name: value.clone() for name, value in run.engine.trainable_state_dict().items()}
        manager.save(TrainingState(step=step), {"loss": 1.0} | ({} if loss is None else {"validation_loss": loss}))
    return values


def assert_trainables(run: TinyRun, expected: dict[str, torch.Tensor]) -> None:
    for name, value in run.engine.trainable_state_dict().items():
        assert torch.equal(value, expected[name])


def test_the_best_checkpoint_is_kept_with_the_newest(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run)
    values = save_steps(run, manager, {1: 3.0, 2: 1.5, 3: 2.0, 4: 1.5, 5: 1.7, 6: 1.9})
    assert run.saved_steps() == [6, 5, 2]  # of equal losses the earliest
    assert manager.load_best() == {"best_step": 2, "best_validation_loss": 1.5}
    assert_trainables(run, values[2])


def test_without_a_metric_only_the_newest_is_kept_and_nothing_is_loaded(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run, metric_for_best_model=None, save_total_limit=1)
    values = save_steps(run, manager, {1: 1.0, 2: 2.0, 3: 3.0})
    assert run.saved_steps() == [3]
    assert manager.load_best() == {}
    assert_trainables(run, values[3])


def test_a_checkpoint_without_the_metric_is_not_a_candidate(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run, save_total_limit=1)
    save_steps(run, manager, {1: 2.0, 2: None})
    assert run.saved_steps() == [2, 1]
    assert manager.load_best()["best_step"] == 1


def test_a_damaged_best_checkpoint_is_skipped(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run, save_total_limit=5)
    save_steps(run, manager, {1: 3.0, 2: 1.5, 3: 2.0})
    (run.folder / "step-00000002" / "trainables.safetensors").write_bytes(b"")
    assert manager.load_best()["best_step"] == 3


def test_a_saved_step_is_not_saved_again_without_its_metrics(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run)
    save_steps(run, manager, {1: 3.0, 2: 1.5})
    assert manager.save_if_finite(TrainingState(step=2)) == list_checkpoints(run.folder)[0]
    assert manager.load_best()["best_step"] == 2


def test_non_finite_parameters_are_not_saved(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run)
    save_steps(run, manager, {1: 3.0})
    with torch.no_grad():
        next(p for p in run.model.parameters() if p.requires_grad).fill_(float("nan"))
    newest = manager.save_if_finite(TrainingState(step=2))
    assert newest is not None and newest.name == "step-00000001"


def test_resume_skips_a_damaged_checkpoint_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped_run(tmp_path, save_steps=1, save_total_limit=2)
    assert run.saved_steps() == [4, 3]
    newest, previous = list_checkpoints(run.folder)
    truncate(newest / "optimizer.safetensors")
    assert checkpoint_to_resume("auto", run.folder, identity=IDENTITY) == previous
    stderr = capsys.readouterr().err
    assert str(newest) in stderr and "optimizer.safetensors" in stderr


def test_resuming_from_the_previous_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    full = TinyRun(tmp_path / "full")
    full.train()
    run = stopped_run(tmp_path / "parts", save_steps=1)
    flip_bit(list_checkpoints(run.folder)[0] / "trainables.safetensors")
    resumed = TinyRun(tmp_path / "parts")
    resumed.train()
    assert resumed.losses == full.losses[3:]
    assert_equal_trainables(resumed, full)


def test_only_damaged_checkpoints_are_a_user_error_with_a_fix(tmp_path: Path) -> None:
    run = stopped_run(tmp_path, save_steps=1)
    for checkpoint in list_checkpoints(run.folder):
        truncate(checkpoint / "optimizer.safetensors")
    with pytest.raises(UserError, match="resume=never"):
        TinyRun(tmp_path).train()
    assert checkpoint_to_resume("never", run.folder, identity=IDENTITY) is None


def test_resume_modes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resume=required: .* use resume=auto"):
        TinyRun(tmp_path / "new").train("required")
    run = stopped_run(tmp_path / "stopped")
    restarted = TinyRun(tmp_path / "stopped")
    restarted.train("never")
    assert len(restarted.losses) == 6
    assert checkpoint_to_resume("required", run.folder, identity=IDENTITY) is not None


@pytest.mark.parametrize("level", [0, 1, 2])
def test_resume_accepts_a_checkpoint_a_checkpoint_folder_or_a_run(tmp_path: Path, level: int) -> None:
    run = stopped_run(tmp_path / "one")
    (checkpoint,) = list_checkpoints(run.folder)
    path = [checkpoint, run.folder, run.folder.parent][level]
    other = TinyRun(tmp_path / "two")
    other.train(str(path))
    assert len(other.losses) == 2


def test_a_checkpoint_of_another_training_is_rejected_with_the_difference(tmp_path: Path) -> None:
    run = stopped_run(tmp_path)
    identity = {"peft": {"rank": 8}, "seed": 7}
    with pytest.raises(UserError, match=r"peft\.rank: saved 4, now 8"):
        checkpoint_to_resume(str(run.folder), tmp_path / "new", identity=identity)
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="found no checkpoint"):
        checkpoint_to_resume(str(tmp_path), tmp_path / "x", identity=IDENTITY)


@pytest.mark.parametrize(("limit", "steps"), [(2, [5, 4]), (3, [5, 4, 2])])
def test_save_steps_and_save_total_limit(tmp_path: Path, limit: int, steps: list[int]) -> None:
    assert stopped_run(tmp_path, after=5, save_steps=2, save_total_limit=limit).saved_steps() == steps


def test_save_minutes(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    assert manager_of(run, save_minutes=0).is_save_time()
    assert not manager_of(run, save_minutes=1).is_save_time()


def test_a_full_disk_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("imsm.training.checkpoint_manager.check_disk_space", lambda folder, *, size: "disk is full")
    manager = manager_of(TinyRun(tmp_path))
    manager.restore(total_steps=6)
    manager.save(TrainingState(step=1), {})
    assert capsys.readouterr().err.count("warning: disk is full") == 1


def test_the_best_by_retention_reaches_the_target_floor(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run, metric_for_best_model="retention", min_target=60.0, save_total_limit=1)
    scores = {1: (1.0, 20.0), 2: (0.9, 60.0), 3: (0.95, 65.0), 4: (0.95, 70.0), 5: (0.7, 90.0)}
    for step, (retention, target) in scores.items():
        manager.save(TrainingState(step=step), {"retention": retention, "watch_target": target})
    assert run.saved_steps() == [5, 3]
    assert manager.load_best() == {"best_step": 3, "best_retention": 0.95}


def test_below_the_floor_the_last_is_used_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TinyRun(tmp_path)
    manager = manager_of(run, metric_for_best_model="retention", min_target=60.0)
    manager.save(TrainingState(step=1), {"retention": 1.0, "watch_target": 59.9})
    manager.save(TrainingState(step=2), {"retention": 0.5})
    assert manager.load_best() == {"min_target_reached": False}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "warning: trainer.min_target=60: no checkpoint reached it on the held-out training examples; the last "
        "one is used"
    )
