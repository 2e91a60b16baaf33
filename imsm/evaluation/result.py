"""`result.json`: everything that one run found, in one file that can be audited.

format, status, name, method, config           what was run
identity                                        which results belong side by side with it
versions, git, fingerprints                     on what it rests
trainable_parameters {adapter, gate}
training {steps, seconds, tokens, tokens_per_second, peak_memory_bytes, final_loss,
          examples, cut, dropped, ...} or null
evaluation {settings, tasks: {name: {role, trained_on, test_set, items, metrics, headline,
                                     seconds, new_tokens, unparsed, truncated}}}
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.paths import checkout

FORMAT = 1
FILE = "result.json"
_LIBRARIES = ("imsm", "torch", "transformers", "peft", "datasets", "evaluate", "scikit-learn")
_KEYS = {
    "format",
    "status",
    "name",
    "method",
    "config",
    "versions",
    "git",
    "fingerprints",
    "trainable_parameters",
    "training",
    "evaluation",
}
_MAPPINGS = ("config", "versions", "fingerprints", "trainable_parameters", "evaluation")


def build_result(
    *,
    name: str,
    method: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    trainable_parameters: Mapping[str, int],
    training: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a finished run.

    Args:
        name: of the run.
        method: of the arm, e.g. "imsm".
        config: `RunConfig.to_dict()`.
        identity: `run_identity(config)`: which results belong side by side with this one.
        fingerprints: SHA-256 by what they identify, e.g. "backbone".
        trainable_parameters: by part, "adapter" and "gate".
        training: what training took; None where nothing was trained.
        evaluation: settings, and scores by task.
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
        "trainable_parameters": dict(trainable_parameters),
        "training": None if training is None else dict(training),
        "evaluation": dict(evaluation),
    }


def provenance() -> dict[str, Any]:
    """On what a result rests: versions of the software, and the commit of the checkout."""
    return {"versions": _versions(), "git": _git()}


def write_result(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `result.json` into a run's folder, whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file is left as it was.
    """
    missing = _KEYS - set(result)
    if missing:
        raise ValueError(f"a result needs {sorted(missing)}")
    path = folder / FILE
    write_atomic(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return path


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a run's folder.

    Raises:
        UserError: there is none, or it is damaged or of another format or shape.
    """
    path = folder / FILE
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: holds no finished run ({FILE} is not there)") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise UserError(f"{path}: is not of format {FORMAT}; run the same command again")
    if missing := _KEYS - set(result):
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; run the same command again")
    if odd := _not_mappings(result):
        raise UserError(f"{path}: {odd[0]} is no mapping; run the same command again")
    return result


def _not_mappings(result: Mapping[str, Any]) -> list[str]:
    """Of what must be a mapping, by its dotted name, what is none; the outer ones first."""
    found = {name: result[name] for name in _MAPPINGS}
    evaluation = result["evaluation"]
    if isinstance(evaluation, dict):
        tasks = evaluation.get("tasks")
        found["evaluation.tasks"] = tasks
        if isinstance(tasks, dict):
            found |= {f"evaluation.tasks.{name}": entry for name, entry in tasks.items()}
    return [name for name, value in found.items() if not isinstance(value, dict)]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout."""
    here = checkout()
    if here is None:
        return None
    commit = _git_output(here, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git_output(here, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
