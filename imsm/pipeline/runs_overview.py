"""The state of every run in a folder, read from its files without loading a model."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result
from imsm.pipeline.run_status import FAILURE, read_failure
from imsm.reporting.runs import headline
from imsm.reporting.training_log import read_training_log
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_identity

_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of one run.

    Attributes:
        name: Name of its folder.
        state: running, finished, failed, trained (not evaluated), interrupted (has a checkpoint) or incomplete.
        stream: The stream that answers: original, tuned or interwoven; None if it is unknown.
        target: Dataset that it is trained on.
        seed: Its seed.
        step: The last step in its log.
        scores: Headline metric of each evaluated task, in points.
        error: Why it failed, in one line.
        command: The command that runs it again, of a failed run.
        changed: Time of the last change of its log or its result, in ISO 8601.
    """

    name: str
    state: str
    stream: str | None = None
    target: str | None = None
    seed: int | None = None
    step: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    command: str | None = None
    changed: str | None = None


def run_states(root: Path) -> list[RunState]:
    """Return the state of each run folder in ``root``, in the order of their last change.

    The folder of an original model that no run of method=original finished is left out: other runs write its answers.
    """
    runs = [RunDir(path) for path in root.glob("*") if path.is_dir()]
    runs = [run for run in runs if os.path.lexists(run.identity) or os.path.lexists(run.path / RESULT)]
    locked = _locked_files()
    states = [_run_state(run, locked) for run in sorted(runs, key=lambda run: (_changed(run.path), run.path.name))]
    return [each for each in states if (each.stream, each.state) != ("original", "incomplete")]


def _run_state(run: RunDir, locked: set[tuple[int, int]]) -> RunState:
    folder = run.path
    identity: dict[str, Any] = {}
    with suppress(UserError):
        identity = read_identity(run, {"method": dict})
    result, failure = _result(folder)
    failure = read_failure(folder) or failure
    log = read_training_log(folder)
    tasks = result["evaluation"]["tasks"] if result is not None else {}
    return RunState(
        name=folder.name,
        state="running" if _file_key(folder / "lock") in locked else _ended_state(run, result, failure),
        stream=identity.get("method", {}).get("stream"),
        target=identity.get("data", {}).get("name"),
        seed=identity.get("seed"),
        step=None if log.empty else int(log["step"].iloc[-1]),
        scores={name: entry["metrics"][headline(entry)] for name, entry in tasks.items()},
        error=None if failure is None else " ".join(failure["error"].split()),
        command=None if failure is None else failure.get("command"),
        changed=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(_changed(folder))),
    )


def _result(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the result of a run, or a record with the error of a damaged one; None and None without one."""
    if not os.path.lexists(folder / RESULT):
        return None, None
    try:
        return read_result(folder), None
    except UserError as error:
        return None, {"error": str(error)}


def _ended_state(run: RunDir, result: Mapping[str, Any] | None, failure: Mapping[str, Any] | None) -> str:
    if failure is not None:
        return "failed"
    if result is not None:
        return "finished"
    if run.is_trained:
        return "trained"
    return "interrupted" if any(run.checkpoints.glob("step-*")) else "incomplete"


def _locked_files() -> set[tuple[int, int]]:
    """Return device and inode of all files that processes of this machine lock; taking a lock could stop a run."""
    found = set()
    with suppress(OSError):
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            with suppress(ValueError, IndexError):
                major, minor, inode = next(part for part in line.split() if part.count(":") == 2).split(":")
                found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return found


def _file_key(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _changed(folder: Path) -> float:
    times = []
    for name in ("identity.json", "log.jsonl", RESULT, FAILURE):
        with suppress(OSError):
            times.append((folder / name).lstat().st_mtime)
    return max(times, default=0.0)
