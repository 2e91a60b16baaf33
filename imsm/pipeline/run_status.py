"""Whether a run is finished, failed or missing, read from its folder without loading a model."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from imsm.config.identity import run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import final_stage
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import REWRITE, read_result
from imsm.reporting.runs import headline
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.json_files import read_json
from imsm.utils.paths import is_local_path
from imsm.utils.run_dir import RunDir, read_identity

FAILURE = "failure.json"
# Settings that change no result; frozen_adapter is a path whose content is part of the identity.
_IGNORED = {"mode", "run_dir", "resume", "engine", "logger", "task_sequence", "frozen_adapter"}


def run_dir_of(config: RunConfig, *, runs_root: Path) -> Path:
    """Return the folder of a run, or of the last stage of a task sequence."""
    return Path(config.run_dir) if config.run_dir else runs_root / run_name(final_stage(config))


def load_if_finished(config: RunConfig, *, runs_root: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if anything remains to be done.

    If data, weights or code are local, the result must be newer than all of their files.
    """
    # mode=evaluate asks for a new evaluation, even if the result exists
    if config.mode != "run":
        return None
    config = final_stage(config)
    folder = run_dir_of(config, runs_root=runs_root)
    try:
        result = read_result(folder)
    except UserError:
        return None
    run = RunDir(folder)
    if run.is_trained and not run.model.exists():
        return None  # the model was removed and is trained again
    # the identity leaves out settings that affect only the evaluation, so both are compared
    same_config = _relevant(result["config"]) == _relevant(_as_json(config.to_dict()))
    if not same_config or result.get("identity") != _as_json(run_identity(config)) or read_failure(folder):
        return None
    local_model = config.backbone.name_or_path if is_local_path(config.backbone.name_or_path) else None
    adapter = RunDir(Path(config.frozen_adapter)).adapter if config.frozen_adapter else None
    sources = (local_model, config.data.local_dir, config.data.mirror_dir, config.config_dir, adapter)
    # local files have no revision; their time stamps are cheaper than hashing them at each start
    finished_ns = (folder / RESULT).stat().st_mtime_ns
    return None if any(_is_newer(Path(source), finished_ns) for source in sources if source) else result


def read_result_of(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return the result of a run in its folder.

    Raises:
        UserError: There is none, it cannot be used, or it is of another run, e.g. copied into the wrong folder.
    """
    result = read_result(folder)
    if result["identity"] != _as_json(run_identity(final_stage(config))):
        raise UserError(f"{folder / RESULT}: is the result of another run, {result['name']}; {REWRITE}")
    return result


def sweep_objectives(result: dict[str, Any], target: str, *, goals: int) -> float | list[float] | None:
    """Return what a search maximizes, in points; None if it was not evaluated.

    With one goal this is the headline score of the target task, with two also the average of the
    headline scores of the forgetting tests.
    """
    tasks = result["evaluation"]["tasks"]
    scores = {name: float(entry["metrics"][headline(entry)]) for name, entry in tasks.items()}
    forgetting = [scores[name] for name, entry in tasks.items() if entry["role"] == "forgetting"]
    if target not in scores or (goals == 2 and not forgetting):
        return None
    return scores[target] if goals == 1 else [scores[target], fmean(forgetting)]


def write_failure(folder: Path, *, error: str, exit_code: int, command: str) -> None:
    """Record a failed run in its folder, if the folder exists; ``command`` starts the run."""
    if not folder.is_dir():
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record = {"error": error, "exit_code": exit_code, "time": now, "command": command}
    with suppress(OSError):  # a full disk may be the reason of the failure
        write_atomic(folder / FAILURE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return the record of `write_failure`, or None if the run did not fail."""
    path = folder / FAILURE
    if not os.path.lexists(path):
        return None
    try:
        record: dict[str, Any] = read_json(path, fix="run its command again", shape={"error": str})
    except UserError as error:
        # the run failed, whatever its message was
        return {"error": str(error)}
    return record


def clear_failure(folder: Path) -> None:
    """Delete the record of an earlier failure."""
    path = folder / FAILURE
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def belongs_to(config: RunConfig, folder: Path) -> bool:
    """Return whether ``folder`` contains this run, and not another one or other files."""
    try:
        return bool(read_identity(RunDir(folder)) == _as_json(run_identity(config)))
    except UserError:
        return False


def _as_json(value: Any) -> Any:
    # tuples become lists, as in a file that was written and read
    return json.loads(json.dumps(value))


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _IGNORED}


def _is_newer(source: Path, time_ns: int) -> bool:
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    return any(f.stat().st_mtime_ns > time_ns for f in files if "__pycache__" not in f.parts)
