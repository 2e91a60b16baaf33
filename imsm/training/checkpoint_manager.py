"""When to save a checkpoint, which to keep and which to resume from."""

import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imsm.models.adapters.base import TrainingCallbacks
from imsm.training.checkpoint import (
    STATE_FILE,
    TrainingState,
    check_disk_space,
    list_checkpoints,
    load_checkpoint,
    load_trainable_params,
    read_state,
    save_checkpoint,
    verify,
)
from imsm.training.engines.base import Engine
from imsm.utils.errors import UserError
from imsm.utils.run_dir import format_diff

RESUME_MODES = ("auto", "required", "never")
TARGET_METRIC = "watch_target"
"""Points on the held-out training examples, a metric of a checkpoint."""
_SIGNS = {"retention": -1}
"""-1 for a metric of which the highest value is best."""


def checkpoint_to_resume(resume: str, folder: Path, *, identity: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to resume from, or None to start from scratch.

    ``resume`` "auto" uses the newest intact checkpoint in ``folder`` if any, "required" requires one,
    "never" uses none; otherwise it is the path of a checkpoint, of a `checkpoints/` folder or of a run.

    Raises:
        UserError: A required checkpoint is missing, all are damaged, or the given path belongs
            to another training.
    """
    if resume == "never":
        return None
    if resume not in RESUME_MODES:
        return _checkpoint_at(Path(resume), identity)
    found = list_checkpoints(folder)
    if not found and resume == "required":
        raise UserError(f"resume=required: found no checkpoint in {folder}; use resume=auto")
    return _newest_intact(found) if found else None


def _checkpoint_at(path: Path, identity: Mapping[str, Any]) -> Path:
    is_checkpoint = (path / STATE_FILE).is_file()
    found = [path] if is_checkpoint else list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not found:
        choices = ", ".join(RESUME_MODES)
        raise UserError(f"resume={path}: found no checkpoint; give a checkpoint folder or one of {choices}")
    checkpoint = _newest_intact(found)
    if diff := format_diff(read_state(checkpoint)["identity"], identity):
        raise UserError(f"resume={path}: belongs to another training; use the settings that it was saved with\n{diff}")
    return checkpoint


def _newest_intact(newest_first: list[Path]) -> Path:
    for path in newest_first:
        error = verify(path)
        if error is None:
            return path
        print(f"warning: checkpoint {path}: {error}; trying the previous one", file=sys.stderr)
    raise UserError(f"{newest_first[0].parent}: all checkpoints are damaged; use resume=never to start from scratch")


@dataclass(kw_only=True)
class CheckpointManager:
    """Save, delete and restore a run's checkpoints.

    ``save_minutes`` and ``save_steps`` are intervals; either may trigger a checkpoint. The
    ``save_total_limit`` newest checkpoints are kept, and the best: with the lowest ``metric_for_best_model``, or the
    highest for "retention", among those with at least ``min_target`` in `TARGET_METRIC`. ``identity`` holds the
    settings that determine the training.
    """

    folder: Path
    identity: Mapping[str, Any]
    engine: Engine
    callbacks: TrainingCallbacks | None
    save_minutes: float
    save_steps: int | None = None
    save_total_limit: int = 2
    metric_for_best_model: str | None = None
    min_target: float | None = None
    resume_from: Path | None = None
    _last_save: float = field(default_factory=time.monotonic)
    _disk_warning_shown: bool = False

    def restore(self, *, total_steps: int) -> TrainingState:
        """Return the initial state, restored from ``resume_from`` if that is set."""
        state = TrainingState()
        if self.resume_from is not None:
            state = load_checkpoint(self.resume_from, engine=self.engine, callbacks=self.callbacks)
            if self.engine.dist_context.is_main:
                print(f"resuming after step {state.step} of {total_steps} ({self.resume_from})", file=sys.stderr)
        self._warn_if_disk_full()
        self._last_save = time.monotonic()
        return state

    def is_save_step(self, step: int) -> bool:
        """Return whether a checkpoint is due by step count; the same in every process."""
        return self.save_steps is not None and step % self.save_steps == 0

    def is_save_time(self) -> bool:
        """Return whether ``save_minutes`` have passed; processes may disagree."""
        return time.monotonic() - self._last_save > 60 * self.save_minutes

    def save(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        """Write a checkpoint and delete those beyond ``save_total_limit``."""
        save_checkpoint(
            self.folder,
            state=state,
            metrics=metrics,
            engine=self.engine,
            callbacks=self.callbacks,
            identity=self.identity,
        )
        # after the write: a slow disk must not make every step a save step
        self._last_save = time.monotonic()
        if self.engine.dist_context.is_main:
            best = self.best()
            for old in list_checkpoints(self.folder)[self.save_total_limit :]:
                if old != best:
                    shutil.rmtree(old, ignore_errors=True)
        self._warn_if_disk_full()

    def save_if_finite(self, state: TrainingState) -> Path | None:
        """Save unless a trainable is not finite or the step is saved already; return the newest."""
        finite = all(bool(value.isfinite().all()) for value in self.engine.trainable_state_dict().values())
        newest = self.newest()
        # rank 0 decides: on a network file system the others may see the folder later
        saved = self.engine.dist_context.run_on_main(lambda: newest is not None and _step_of(newest) == state.step)
        if finite and state.step and not saved:
            self.save(state, {})
        return self.newest()

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return next(iter(list_checkpoints(self.folder)), None)

    def best(self) -> Path | None:
        """Return the earliest of the intact checkpoints that are best; None if no one reaches ``min_target``."""
        if self.metric_for_best_model is None:
            return None
        measured = []
        for path in list_checkpoints(self.folder):
            try:
                metrics = read_state(path)["metrics"]
            except ValueError:
                continue
            value, target = metrics.get(self.metric_for_best_model), metrics.get(TARGET_METRIC, -math.inf)
            if value is not None and (self.min_target is None or target >= self.min_target):
                measured.append((_SIGNS.get(self.metric_for_best_model, 1) * value, _step_of(path), path))
        # hashed in order of the metric, so that usually only the best one is read in full
        return next((path for *_, path in sorted(measured) if verify(path) is None), None)

    def load_best(self) -> dict[str, float]:
        """Load the best checkpoint's trainables and return its step and metric; without one, the last stays loaded.

        Then {}, or with ``min_target``, which no checkpoint reached, {"min_target_reached": False}.
        """
        best = self.engine.dist_context.run_on_main(lambda: str(self.best() or ""))
        if not best and self.min_target is not None:
            if self.engine.dist_context.is_main:
                print(
                    f"warning: trainer.min_target={self.min_target:g}: no checkpoint reached it on the held-out "
                    "training examples; the last one is used",
                    file=sys.stderr,
                )
            return {"min_target_reached": False}
        if not best:
            return {}
        load_trainable_params(Path(best), engine=self.engine)
        name = self.metric_for_best_model
        assert name is not None
        return {"best_step": _step_of(Path(best)), f"best_{name}": read_state(Path(best))["metrics"][name]}

    def _warn_if_disk_full(self) -> None:
        """Print once, in time, that a later checkpoint will not fit."""
        # every process: in ZeRO the state dict is a collective
        size = sum(value.nbytes for value in self.engine.trainable_state_dict().values())
        warning = check_disk_space(self.folder, size=3 * size)  # values and two Adam moments
        if warning and not self._disk_warning_shown and self.engine.dist_context.is_main:
            self._disk_warning_shown = True
            print(f"warning: {warning}", file=sys.stderr)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
