"""When a training is kept, which checkpoints stay, and which one the finished model comes from."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.training.checkpoint import (
    STATE,
    TrainingState,
    check_disk_space,
    checkpoints,
    load_checkpoint,
    load_values,
    read_state,
    save_checkpoint,
    verify,
)
from imsm.utils.dicts import format_diff
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.models.adapters.base import TrainingCallbacks
    from imsm.training.engines.base import Engine


WORDS = ("auto", "required", "never")


def checkpoint_to_resume(resume: str, folder: Path, *, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training goes on from; None: it begins.

    Args:
        resume: "auto" goes on from the run's newest whole checkpoint if there is one; "required"
            demands one; "never" begins anew; else the folder of a checkpoint, or of the run or
            the `checkpoints/` that it lies in.
        folder: of this run's own checkpoints.
        identity: what decides this run's training.

    Raises:
        UserError: there is none and there must be one, none of those that are there is whole, or
            the one that was named belongs to another training.
    """
    if resume == "never":
        return None
    if resume not in WORDS:
        return _named(Path(resume), identity)
    found = checkpoints(folder)
    if not found and resume == "required":
        raise UserError(f"resume=required: there is no checkpoint in {folder}; use resume=auto")
    return _newest_whole(found) if found else None


def _named(path: Path, identity: Mapping[str, Any]) -> Path:
    if (path / STATE).is_file():
        found = [path]
    else:
        found = checkpoints(path) or checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"resume={path}: there is no checkpoint; give a checkpoint's folder, or auto, must, never")
    place = _newest_whole(found)
    other = read_state(place)["identity"]
    if lines := format_diff(other, identity):
        raise UserError(f"resume={path}: is of another training; choose what it was trained with\n{lines}")
    return place


def _newest_whole(found: list[Path]) -> Path:
    """The first that is whole; those before it are named."""
    for place in found:
        problem = verify(place)
        if problem is None:
            return place
        print(f"warning: checkpoint {place}: {problem}; trying the one before", file=sys.stderr)
    raise UserError(f"{found[0].parent}: none of its checkpoints is whole; give resume=never to train from the start")


@dataclass(kw_only=True)
class CheckpointManager:
    """Writes, drops and reads a run's checkpoints.

    Attributes:
        folder: of the run's checkpoints.
        identity: what decides the training; a checkpoint carries it.
        engine: what is kept.
        hooks: the PEFT method's, which are kept too.
        minutes: between two checkpoints.
        steps: between two checkpoints, in place of or beside the minutes; None: minutes alone.
        keep: how many stay, the newest ones.
        best_by: what is measured and the less the better; the checkpoint where it was least stays
            too; None: the newest ones alone.
        start: the checkpoint to go on from; None: begin.
    """

    folder: Path
    identity: Mapping[str, Any]
    engine: Engine
    hooks: TrainingCallbacks | None
    minutes: float
    steps: int | None = None
    keep: int = 2
    best_by: str | None = None
    start: Path | None = None
    _saved: float = field(default_factory=time.monotonic)
    _warned: bool = False

    def restore(self, *, steps: int) -> TrainingState:
        """Where the training stands: at its start, or where the checkpoint was written.

        ``steps`` are those of the whole training, for the message.
        """
        progress = TrainingState()
        if self.start is not None:
            progress = load_checkpoint(self.start, engine=self.engine, hooks=self.hooks)
            if self.engine.dist_context.is_main:
                at = f"step {progress.step} of {steps}"
                print(f"going on after {at} ({self.start})", file=sys.stderr)
        self._warn_of_a_full_disk()
        self._saved = time.monotonic()
        return progress

    def is_save_step(self, step: int) -> bool:
        """Whether a step is to be kept by its number; every process says the same."""
        return self.steps is not None and step % self.steps == 0

    def is_save_time(self) -> bool:
        """Whether so many minutes have passed since the last one; each process has its clock."""
        return time.monotonic() - self._saved > 60 * self.minutes

    def save(self, progress: TrainingState, measured: Mapping[str, float]) -> None:
        """Write a checkpoint, and drop those that need not stay."""
        save_checkpoint(
            self.folder,
            progress=progress,
            measured=measured,
            engine=self.engine,
            hooks=self.hooks,
            identity=self.identity,
        )
        self._saved = time.monotonic()
        if self.engine.dist_context.is_main:
            best = self.best()
            for old in checkpoints(self.folder)[self.keep :]:
                if old != best:
                    shutil.rmtree(old, ignore_errors=True)
        self._warn_of_a_full_disk()

    def _warn_of_a_full_disk(self) -> None:
        """Say once, while there is time, that a checkpoint to come will find no room."""
        size = sum(value.nbytes for value in self.engine.trainable_state_dict().values())
        warning = check_disk_space(self.folder, size=3 * size)  # values and two moments each
        if warning and not self._warned and self.engine.dist_context.is_main:
            self._warned = True
            print(f"warning: {warning}", file=sys.stderr)

    def save_if_finite(self, progress: TrainingState) -> Path | None:
        """Keep the steps that were finished, if their values are good; the newest checkpoint."""
        good = all(bool(value.isfinite().all()) for value in self.engine.trainable_state_dict().values())
        kept = checkpoints(self.folder)
        there = self.engine.dist_context.run_on_main(lambda: bool(kept) and _step(kept[0]) == progress.step)
        if good and progress.step and not there:
            self.save(progress, {})
        return self.newest()

    def newest(self) -> Path | None:
        """The checkpoint that was written last."""
        return next(iter(checkpoints(self.folder)), None)

    def best(self) -> Path | None:
        """The checkpoint where ``best_by`` was least, the earliest of equals."""
        if self.best_by is None:
            return None
        found = []
        for place in checkpoints(self.folder):
            try:
                state = read_state(place)
            except ValueError:
                continue
            if self.best_by in state["measured"]:
                found.append((state["measured"][self.best_by], state["progress"]["step"], place))
        whole = (place for *_, place in sorted(found) if verify(place) is None)
        return next(whole, None)

    def load_best(self) -> dict[str, float]:
        """Give the model the values of the best checkpoint; its step and value, for the record."""
        told = self.engine.dist_context.run_on_main(lambda: str(self.best() or ""))
        if not told:
            return {}
        place = Path(told)
        load_values(place, engine=self.engine)
        state = read_state(place)
        assert self.best_by is not None
        value = state["measured"][self.best_by]
        return {"best_step": state["progress"]["step"], f"best_{self.best_by}": value}


def _step(place: Path) -> int:
    return int(place.name.rpartition("-")[2])
