"""Status files of the jobs of a sweep, and the summary of a sweep.

A job may run in another process or on another machine: each job writes its own file, and the
process that started the sweep reads them.

    sweeps/<name>-<hash of the overrides>/<time>/status/<number>.json
"""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from imsm.utils.errors import UserError, first_line
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_text
from imsm.utils.json_files import read_json, read_text

FOLDER = "IMSM_SWEEP_DIR"
"""Environment variable from which conf/config.yaml reads `hydra.sweep.dir`."""
_FIX = "run the same command again; finished runs are not repeated"
_NO_TRIAL = "search: no trial was evaluated on all its tasks; no best trial"
TEMPORARY = "imsm-sweep-"
"""Prefix of the temporary folder of a sweep that leaves none; the process id follows."""


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended."""

    number: int  # index in the sweep
    overrides: list[str]  # its Hydra overrides
    state: Literal["done", "skipped", "failed"]  # `skipped` if the run was finished before the sweep started
    exit_code: int = 0  # exit code that the job alone would have
    error: str | None = None  # error message in one line
    objective: float | list[float] | None = None  # values that a search maximizes


@dataclass(frozen=True, kw_only=True)
class SweepDir:
    """Folder of one attempt at a sweep (or of a single run)."""

    folder: Path

    def write_status(self, outcome: JobOutcome) -> None:
        """Write the status file of a job."""
        path = self.folder / "status" / f"{outcome.number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(outcome), ensure_ascii=False) + "\n")

    def read_statuses(self) -> dict[int, JobOutcome]:
        """Return the outcomes of the jobs that ended, by number."""
        outcomes = map(_read_outcome, (self.folder / "status").glob("*.json"))
        return {outcome.number: outcome for outcome in sorted(outcomes, key=lambda outcome: outcome.number)}


def _read_outcome(path: Path) -> JobOutcome:
    values = read_json(path, fix=_FIX, shape={"number": int, "overrides": list, "state": str})
    try:
        return JobOutcome(**values)
    except TypeError as error:
        raise UserError(f"{path}: is of another version of imsm ({error}); {_FIX}") from error


def sweep_dir(runs_root: Path, *, name: str, overrides: Sequence[str], config_dir: Path | None) -> Path:
    """Return the folder of all attempts at a sweep; equal overrides share one."""
    # sorted: the order of overrides does not change a sweep
    text = json.dumps([sorted(overrides), str(config_dir)])
    return runs_root / "sweeps" / f"{name}-{hash_text(text)[:8]}"


def new_attempt(folder: Path) -> SweepDir:
    """Create the folder of a new attempt at a sweep."""
    attempt = folder / time.strftime("%Y-%m-%d_%H-%M-%S")
    (attempt / "status").mkdir(parents=True, exist_ok=True)
    return SweepDir(folder=attempt)


def latest_attempt(folder: Path) -> SweepDir | None:
    """Return the latest attempt at a sweep, or None if it was never started."""
    attempts = sorted(path.parent for path in folder.glob("*/status"))
    return SweepDir(folder=attempts[-1]) if attempts else None


def job_command(overrides: Sequence[str], *, config_dir: Path | None) -> str:
    """Return the command that runs one job alone, quoted for a shell."""
    words = [] if config_dir is None else ["--config-dir", str(config_dir)]
    words += [text for text in overrides if text.partition("=")[0] != "sweep"]
    return shlex.join(["imsm", "run", *words])


def mark_missing_failed(outcomes: Mapping[int, JobOutcome], expected: Sequence[Sequence[str]]) -> list[JobOutcome]:
    """Return the outcomes of all jobs; a job without a status file has failed.

    ``expected`` holds the overrides of each job, in order; empty for a search.
    """
    missing = {
        number: JobOutcome(
            number=number, overrides=list(overrides), state="failed", exit_code=1, error="its process left no status"
        )
        for number, overrides in enumerate(expected)
    }
    return [outcome for _, outcome in sorted((missing | dict(outcomes)).items())]


def summary(outcomes: Sequence[JobOutcome], *, config_dir: Path | None) -> list[str]:
    """Return the number of jobs by state, and for each failed job its command and error."""
    counts = {state: sum(o.state == state for o in outcomes) for state in ("done", "failed", "skipped")}
    parts = [f"{counts['done']} done", f"{counts['failed']} failed"]
    parts += [f"{counts['skipped']} skipped (finished before)"] if counts["skipped"] else []
    lines = [f"sweep of {len(outcomes)}: {', '.join(parts)}"]
    for outcome in outcomes:
        if outcome.state == "failed":
            lines.append(f"  failed: {job_command(outcome.overrides, config_dir=config_dir)}")
            lines.append(f"          {outcome.error}")
    return lines


def format_best_trial(folder: Path) -> str:
    """Return the best trials of a search, from the file that Hydra's Optuna sweeper writes.

    A search for target and retention has no single best trial: those are shown that no other trial beats in both.
    """
    path = folder / "optimization_results.yaml"
    if not os.path.lexists(path):
        return _NO_TRIAL
    try:
        results = yaml.safe_load(read_text(path, fix=_FIX))
        if "solutions" not in results:
            return f"best: {_params(results['best_params'])} gives {results['best_value']:.1f} points ({path})"
        if not results["solutions"]:
            return _NO_TRIAL
        lines = ["not beaten in both target and average of the forgetting tests:"]
        for trial in sorted(results["solutions"], key=lambda trial: -trial["values"][0]):
            target, retention = trial["values"]
            lines.append(f"  {target:.1f} and {retention:.1f} points: {_params(trial['params'])}")
        return "\n".join([*lines, f"({path})"])
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}); {_FIX}") from error


def _params(values: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
