"""Which checkpoints stay, and the best one as the finished model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.training.checkpoint import archive_later, checkpoints, read_state
from imsm.training.checkpoint_manager import CheckpointManager
from tests.training.test_trainer import IDENTITY, Run


def keeper(run: Run, folder: Path, **changes: object) -> CheckpointManager:
    arguments = {
        "folder": folder,
        "identity": IDENTITY,
        "engine": run.engine,
        "hooks": run.hooks,
        "minutes": 60,
        "keep": 2,
        "best_by": "validation_loss",
    }
    return CheckpointManager(**{**arguments, **changes})  # type: ignore[arg-type]


def kept(folder: Path) -> list[int]:
    return sorted(read_state(place)["progress"]["step"] for place in checkpoints(folder))


def saved(run: Run, made: CheckpointManager, losses: dict[int, float]) -> dict[int, dict[str, torch.Tensor]]:
    """Checkpoints with such validation losses, the values moved between them."""
    from imsm.training.checkpoint import TrainingState

    values = {}
    for step, loss in losses.items():
        with torch.no_grad():
            for parameter in run.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        values[step] = {name: v.clone() for name, v in run.engine.trainable_state_dict().items()}
        measured = {"loss": 1.0} if loss is None else {"validation_loss": loss, "loss": 1.0}
        made.save(TrainingState(step=step), measured)
    return values


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints")
    values = saved(run, made, {1: 3.0, 2: 1.5, 3: 2.0, 4: 1.5, 5: 1.7, 6: 1.9})
    assert kept(made.folder) == [2, 5, 6]  # the earliest of equals
    assert made.load_best() == {"best_step": 2, "best_validation_loss": 1.5}
    for name, value in run.engine.trainable_state_dict().items():
        assert torch.equal(value, values[2][name])


def test_without_a_measure_the_newest_stay_and_the_last_is_the_model(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints", best_by=None, keep=1)
    values = saved(run, made, {1: 1.0, 2: 2.0, 3: 3.0})
    assert kept(made.folder) == [3]
    assert made.load_best() == {}
    for name, value in run.engine.trainable_state_dict().items():
        assert torch.equal(value, values[3][name])


def test_a_checkpoint_that_was_not_measured_is_no_candidate(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints", keep=1)
    saved(run, made, {1: 2.0, 2: None})  # type: ignore[dict-item]
    assert kept(made.folder) == [1, 2]
    assert made.load_best()["best_step"] == 1


def test_validation_changes_nothing_else(tmp_path: Path) -> None:
    """Dropout draws the same, and what is measured is the loss without it."""
    from imsm.training.validation import validation_loss
    from tests.training.test_trainer import items

    run, other = Run(tmp_path / "a"), Run(tmp_path / "b")
    run.kept = other.kept = {"steps": 1}
    run.train()
    other.validation = items()[:5]
    other.train()
    assert other.losses == run.losses
    other.model.eval()
    batch = items()[:5]
    arguments = {"engine": other.engine, "pad_id": 0}
    found = [validation_loss(other.model, batch, micro_batch_size=size, **arguments) for size in (1, 2, 5)]
    assert found == pytest.approx([other.validation_losses[-1]] * 3, abs=1e-6)


def test_a_damaged_best_gives_way_to_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints", keep=5)
    saved(run, made, {1: 3.0, 2: 1.5, 3: 2.0})
    (best,) = made.folder.glob("step-*2")
    (best / "trainables.safetensors").write_bytes(b"")
    assert made.load_best()["best_step"] == 3


def test_a_value_that_is_not_finite_leaves_the_last_checkpoint_as_it_is(tmp_path: Path) -> None:
    from imsm.training.checkpoint import TrainingState

    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints")
    saved(run, made, {1: 3.0, 2: 1.5})
    assert made.save_if_finite(TrainingState(step=2)) == checkpoints(made.folder)[0]
    assert made.load_best()["best_step"] == 2


def test_going_on_from_an_older_one_sets_the_newer_ones_aside(tmp_path: Path) -> None:
    run = Run(tmp_path)
    made = keeper(run, tmp_path / "checkpoints", keep=5, best_by=None)
    saved(run, made, {1: 1.0, 2: 1.0, 3: 1.0})
    archive_later(made.folder / "step-00000001", made.folder)
    assert kept(made.folder) == [1]
    saved(run, made, {2: 1.0})
    assert kept(made.folder) == [1, 2]
    assert len(list(made.folder.glob("abandoned-*"))) == 2
