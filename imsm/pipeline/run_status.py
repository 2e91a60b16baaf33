"""Whether a run's folder holds all that a configuration asks for, without loading any library."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from imsm.config.identity import run_identity, run_name
from imsm.config.schema import RunConfig, is_local
from imsm.config.stages import final_stage
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result
from imsm.reporting.score_table import headline
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.run_dir import RunDir

FAILURE = "failure.json"


def write_failure(folder: Path, *, error: str, exit_code: int, command: str) -> None:
    """Note in a run's folder how its run ended; a folder that is not there is not made.

    Args:
        folder: the run's.
        error: what went wrong, in one line.
        exit_code: what the run's own command would have ended with.
        command: what makes the run.
    """
    if not folder.is_dir():
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    noted = {"error": error, "exit_code": exit_code, "time": now, "command": command}
    with suppress(OSError):  # a full disk may be what went wrong
        write_atomic(folder / FAILURE, json.dumps(noted, indent=2, ensure_ascii=False) + "\n")


def read_failure(folder: Path) -> dict[str, Any] | None:
    """What `write_failure` noted; None if the run did not fail."""
    try:
        noted = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) and "error" in noted else None


def clear_failure(folder: Path) -> None:
    """Forget an earlier failure: the run starts again, or is finished."""
    with suppress(OSError):
        (folder / FAILURE).unlink(missing_ok=True)


_ELSEWHERE = {"mode", "run_dir", "resume", "engine", "logger", "task_sequence"}  # no result changes
_ELSEWHERE |= {"frozen_adapter"}  # where it lies; what it is is part of the identity


def run_dir_of(config: RunConfig, *, runs_root: Path) -> Path:
    """A run's folder: the one that was asked for, or its name under the root of all runs.

    A sequence's is that of its last stage.
    """
    return Path(config.run_dir) if config.run_dir else runs_root / run_name(final_stage(config))


def load_if_finished(config: RunConfig, *, runs_root: Path) -> dict[str, Any] | None:
    """The result of the very run that ``config`` asks for; None if there is anything left to do.

    Where data, a model or code of one's own lie in a folder, the result counts only if nothing in
    that folder is newer: the run itself looks closer.
    """
    if config.mode != "run":
        return None
    config = final_stage(config)
    folder = run_dir_of(config, runs_root=runs_root)
    try:
        result = read_result(folder)
    except UserError:
        return None
    wanted = json.loads(json.dumps(config.to_dict()))
    asked = [{k: v for k, v in c.items() if k not in _ELSEWHERE} for c in (result["config"], wanted)]
    same = asked[0] == asked[1]
    same = same and result.get("identity") == json.loads(json.dumps(run_identity(config)))
    if not same or read_failure(folder) is not None:
        return None
    made = (folder / RESULT).stat().st_mtime_ns
    model = config.backbone.name_or_path if is_local(config.backbone.name_or_path) else None
    own = (model, config.data.local_dir, config.data.mirror_dir, config.config_dir, _adapter(config))
    return None if any(_changed_since(made, Path(place)) for place in own if place) else result


def _adapter(config: RunConfig) -> Path | None:
    """Where the adapter of another run lies that is taken as it is."""
    return RunDir(Path(config.frozen_adapter)).adapter if config.frozen_adapter else None


def sweep_objective(result: dict[str, Any], target: str) -> float | None:
    """What a search maximises: the target's score by its headline metric; None if not judged."""
    entry = result["evaluation"]["tasks"].get(target)
    return None if entry is None else float(entry["metrics"][headline(entry)])


def _changed_since(made: int, place: Path) -> bool:
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    return any(f.stat().st_mtime_ns > made for f in files if "__pycache__" not in f.parts)
