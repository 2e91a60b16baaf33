"""`result.json`: build, write and read the complete record of one run.

format, status, name, method, config           what was run
identity                                        which results may be compared with it
versions, git, fingerprints                     provenance
machine {device, device_name, cpu, threads}     where the responses were computed or read from the cache
trainable_parameters {adapter, gate}
training {steps, seconds, tokens, tokens_per_second, peak_memory_bytes, final_loss,
          examples, cut, dropped, hidden_state_cache, machine, path, watch, best_step, ...} or null
evaluation {settings, tasks: {name: {role, trained_on, test_set, contamination, num_examples, metrics,
                                     headline, seconds, new_tokens, unparsed, truncated,
                                     predictions_sha256, ...}}}
sha256                                          of all of the above

`training.path`, with `evaluation.checkpoints`: the models after each `trainer.save_steps`, in order. The entry of the
trained model itself is `evaluation`; its step is `training.best_step` if a checkpoint was selected, else the last.
    [{step, tasks: {name: {role, test_set, num_examples, metrics, headline, ..., predictions_sha256}}}]
Predictions are in <run>/kept_checkpoints/step-<8 digits>/evaluation/. `training.watch`, with `trainer.watch_items`:
    {name: {split, items, original}}            items of each forgetting test, and the original's points on them
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imsm.utils.errors import UserError
from imsm.utils.json_files import HASH_KEY, hash_values, read_json, shape_problem, write_hashed_json
from imsm.utils.paths import check_path_name, checkout

FORMAT = 3
FILE = "result.json"
REWRITE = "run the same command with mode=evaluate to write it again from the response cache"
"""How to replace a changed result or predictions."""
_LIBRARIES = (
    *("imsm", "torch", "transformers", "peft", "datasets", "evaluate", "scikit-learn"),
    *("accelerate", "deepspeed", "numpy", "safetensors", "tokenizers"),
)
_MAPPINGS = ("config", "versions", "fingerprints", "machine", "trainable_parameters", "evaluation")
_SHAPE: dict[str, type] = {"method": str, "config.gate": dict, "config.backbone": dict, "config.data": dict}
_IDENTITY_SHAPE: dict[str, type] = {"identity.backbone": dict, "identity.method.stream": str}
_Number = float | None


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _ProtocolEntry(_Model):
    metrics: dict[str, float] = Field(min_length=1)
    unparsed: _Number = None


class _Contamination(_Model):
    count: int
    ids: list[str]


class _TaskEntry(_ProtocolEntry):
    headline: str
    num_examples: int
    test_set: str = ""
    seconds: _Number = None
    new_tokens: _Number = None
    truncated: _Number = None
    reference_loglik: _Number = None
    kl_to_original: _Number = None
    gate_mean: _Number = None
    decided: dict[str, int] | None = None
    chance: _Number = None
    protocol: str = "strict"
    protocols: dict[str, _ProtocolEntry] = {}
    contamination: _Contamination | None = None


class _Agreement(_Model):
    examples: int
    equal: int
    other_score: float


class _Backend(_Model):
    engine: str
    agreement: dict[str, _Agreement]


class _Evaluation(_Model):
    settings: dict[str, Any] = {}
    backend: _Backend | None = None
    tasks: dict[str, _TaskEntry]
    original: dict[str, _TaskEntry] | None = None


class _PathEntry(_Model):
    step: int
    tasks: dict[str, _TaskEntry]


class _Watched(_Model):
    split: str
    items: int
    original: float


class _Training(_Model):
    steps: _Number = None
    path: list[_PathEntry] = []
    watch: dict[str, _Watched] = {}
    best_step: int | None = None
    best_retention: _Number = None
    min_target_reached: bool = True
    seconds: _Number = None
    tokens: _Number = None
    tokens_per_second: _Number = None
    peak_memory_bytes: _Number = None
    final_loss: _Number = None


class _Content(_Model):
    """The values of `result.json` that reports and tables compute with."""

    training: _Training | None
    evaluation: _Evaluation


_KEYS = {"format", "status", "name", "method", "git", "training", *_MAPPINGS}


def build_result(
    *,
    name: str,
    method: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    machine: Mapping[str, Any],
    trainable_parameters: Mapping[str, int],
    training: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of a finished run.

    ``method`` is "original", "peft", "imsm", a custom method, or "baseline". ``identity`` is
    `run_identity(config)`, ``fingerprints`` SHA-256 by input, e.g. "backbone", ``machine`` is
    `imsm.utils.machine.describe_machine`, ``trainable_parameters`` the counts of "adapter" and "gate", and
    ``training`` None if nothing was trained.
    """
    return {
        "format": FORMAT,
        "status": "finished",
        "name": name,
        "method": method,
        "config": dict(config),
        "identity": dict(identity),
        **provenance(),
        "fingerprints": dict(fingerprints),
        "machine": dict(machine),
        "trainable_parameters": dict(trainable_parameters),
        "training": None if training is None else dict(training),
        "evaluation": dict(evaluation),
    }


def provenance() -> dict[str, Any]:
    """Return the library versions and the git commit."""
    return {"versions": _versions(), "git": _git()}


def write_result(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `result.json` with its own hash, atomically, and return its path.

    Raises:
        ValueError: Keys are missing.
        OSError: The file cannot be written; an existing file is unchanged.
    """
    missing = _KEYS - set(result)
    if missing:
        raise ValueError(f"a result needs {sorted(missing)}")
    path = folder / FILE
    write_hashed_json(path, result)
    return path


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result of a run directory.

    Raises:
        UserError: The file is missing, damaged, of another format, or was changed since it was written.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        raise UserError(f"{folder}: holds no finished run ({FILE} is missing)")
    result: dict[str, Any] = read_json(path, fix=REWRITE)
    # Written by other versions too: check everything that readers rely on.
    if (found := result.get("format")) != FORMAT:
        raise UserError(f"{path}: is of format {found}, not {FORMAT} (another version of imsm); {REWRITE}")
    if result.pop(HASH_KEY, None) != hash_values(result):
        raise UserError(f"{path}: changed since it was written (its hash differs); {REWRITE}")
    if missing := _KEYS - set(result):
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; {REWRITE}")
    if invalid := _non_mappings(result):
        raise UserError(f"{path}: {invalid[0]} is not a mapping; {REWRITE}")
    if problem := _odd_values(result):
        raise UserError(f"{path}: {problem}; {REWRITE}")
    _check_path_names(result, path)
    return result


def result_error(folder: Path) -> str | None:
    """Return why the `result.json` of a folder cannot be used, or None if it can or does not exist."""
    if not os.path.lexists(folder / FILE):
        return None
    try:
        read_result(folder)
    except UserError as error:
        return str(error)
    return None


def _check_path_names(result: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError if a name that becomes part of a path is not one."""
    names = [("name", result["name"]), ("method", result["method"])]
    names += [("evaluation.tasks", task) for task in result["evaluation"]["tasks"]]
    previous = result["config"].get("previous_stage")
    if isinstance(previous, dict):
        names.append(("config.previous_stage.run", previous.get("run")))
    for key, name in names:
        check_path_name(name, key=key, source=path)


def _non_mappings(result: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of values that should be mappings and are not, outer ones first."""
    values = {name: result[name] for name in _MAPPINGS}
    evaluation = result["evaluation"]
    if isinstance(evaluation, dict):
        tasks = evaluation.get("tasks")
        values["evaluation.tasks"] = tasks
        if isinstance(tasks, dict):
            values |= {f"evaluation.tasks.{name}": entry for name, entry in tasks.items()}
    return [name for name, value in values.items() if not isinstance(value, dict)]


def _odd_values(result: Mapping[str, Any]) -> str | None:
    """Return why a value that comparisons and tables rely on is of another type, or None."""
    shape = dict(_SHAPE) if result.get("identity") is None else _SHAPE | _IDENTITY_SHAPE
    if problem := shape_problem(result, shape):
        return problem
    try:
        _Content.model_validate({key: result[key] for key in ("training", "evaluation")})
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    # Metadata, because importing all libraries for their versions would take seconds.
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Return the commit and whether tracked files differ from it; None outside a checkout."""
    repository = checkout()
    commit = repository and _git_output(repository, "rev-parse", "HEAD")
    if not repository or commit is None:
        return None
    # Untracked files, such as runs inside the checkout, do not change the code.
    changes = _git_output(repository, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    # With a time limit: a slow network disk must not block a finished run.
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
