"""Where a training goes on: damaged and missing checkpoints, the words, how often and how many."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imsm.training.checkpoint import check_disk_space, checkpoints, load_checkpoint, read_state
from imsm.training.checkpoint_manager import checkpoint_to_resume
from imsm.utils.errors import RunError, UserError
from tests.training.test_trainer import IDENTITY, Run

FILES = [
    "trainables.safetensors", "optimizer.safetensors", "hooks.safetensors", "random.safetensors",
    "state.json",
]  # fmt: skip


def truncated(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flipped(file: Path) -> None:
    """One bit in the middle, which no format notices by itself."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def missing(file: Path) -> None:
    file.unlink()


def stopped(folder: Path, *, after: int = 4, **kept: int) -> Run:
    """A training that was stopped; its checkpoints lie in ``folder``."""
    run = Run(folder)
    run.kept = dict(kept)
    run.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run


def steps_of(run: Run) -> list[int]:
    return [read_state(place)["progress"]["step"] for place in checkpoints(run.folder)]


@pytest.mark.parametrize("harm", [truncated, flipped, missing])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, file: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped(tmp_path, steps=1, keep=2)
    assert steps_of(run) == [4, 3]
    newest, before = checkpoints(run.folder)
    harm(newest / file)
    assert checkpoint_to_resume("auto", run.folder, identity=IDENTITY) == before
    told = capsys.readouterr().err
    assert str(newest) in told and file in told
    with pytest.raises(RunError, match=file):
        load_checkpoint(newest, engine=run.engine, hooks=run.hooks)


def test_after_damage_the_end_is_the_same(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    whole.train()
    run = stopped(tmp_path / "parts", steps=1)
    flipped(checkpoints(run.folder)[0] / "trainables.safetensors")
    going_on = Run(tmp_path / "parts")
    going_on.train()
    assert going_on.losses == whole.losses[3:]
    expected = whole.engine.trainable_state_dict()
    for name, value in going_on.engine.trainable_state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_nothing_whole_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    run = stopped(tmp_path, steps=1)
    for place in checkpoints(run.folder):
        truncated(place / "optimizer.safetensors")
    with pytest.raises(UserError, match="resume=never"):
        Run(tmp_path).train()
    assert checkpoint_to_resume("never", run.folder, identity=IDENTITY) is None


def test_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resume=required: there is no checkpoint"):
        Run(tmp_path / "new").train("required")
    run = stopped(tmp_path / "begun")
    again = Run(tmp_path / "begun")
    again.train("never")
    assert len(again.losses) == 6
    assert checkpoint_to_resume("required", run.folder, identity=IDENTITY) is not None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_is_a_checkpoint_or_holds_them(tmp_path: Path, depth: int) -> None:
    run = stopped(tmp_path / "one")
    (place,) = checkpoints(run.folder)
    named = [place, run.folder, run.folder.parent][depth]
    other = Run(tmp_path / "two")
    other.train(str(named))
    assert len(other.losses) == 2


def test_another_trainings_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    wanted = {"peft": {"rank": 8}, "seed": 7}
    with pytest.raises(UserError, match=r"peft\.rank: saved 4, now 8"):
        checkpoint_to_resume(str(run.folder), tmp_path / "new", identity=wanted)
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint_to_resume(str(tmp_path), tmp_path / "x", identity=IDENTITY)


def test_how_often_and_how_many(tmp_path: Path) -> None:
    run = stopped(tmp_path, after=5, steps=2, keep=2)
    assert steps_of(run) == [5, 4]
    run = stopped(tmp_path / "three", after=5, steps=2, keep=3)
    assert steps_of(run) == [5, 4, 2]


def test_a_signal_asks_for_a_checkpoint_and_the_training_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.kept = {"keep": 5}
    run.save_after = 2
    run.train()
    assert len(run.losses) == 6
    assert steps_of(run) == [6, 2]


def test_low_disk_is_said_before_it_hurts(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    warning = check_disk_space(tmp_path / "not" / "yet", size=free)
    assert warning is not None and "free some space" in warning
    assert check_disk_space(tmp_path, size=1) is None
