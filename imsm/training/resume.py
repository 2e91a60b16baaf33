"""Where a training goes on: `resume=auto|must|never|<folder of a checkpoint>`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imsm.errors import UserError
from imsm.run_folder import format_diff
from imsm.training.checkpoint import STATE, checkpoints, read_state, verify

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
        raise UserError(
            f"resume={path}: there is no checkpoint; give a checkpoint's folder, or auto, must, "
            "never"
        )
    place = _newest_whole(found)
    other = read_state(place)["identity"]
    if lines := format_diff(other, identity):
        raise UserError(
            f"resume={path}: is of another training; choose what it was trained with\n{lines}"
        )
    return place


def _newest_whole(found: list[Path]) -> Path:
    """The first that is whole; those before it are named."""
    for place in found:
        problem = verify(place)
        if problem is None:
            return place
        print(f"warning: checkpoint {place}: {problem}; trying the one before", file=sys.stderr)
    raise UserError(
        f"{found[0].parent}: none of its checkpoints is whole; give resume=never to train from "
        "the start"
    )
