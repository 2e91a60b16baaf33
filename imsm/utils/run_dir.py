"""A run's folder: whose it is, who works in it now, and what lies where."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.progress import print_above_bar

_NOT_THE_RUNS = ("lock", "processes")
"""What concerns the processes at work alone; it may be there before the run is."""


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    @property
    def identity(self) -> Path:
        """What decided the training, as JSON."""
        return self.path / "identity.json"

    @property
    def inputs(self) -> Path:
        """Fingerprints of what the training began with, as JSON."""
        return self.path / "input_hashes.json"

    @property
    def model(self) -> Path:
        """The finished model: configuration, adapter, gate, tokenizer."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The finished model's adapter."""
        return self.model / "adapter"

    @property
    def trained(self) -> Path:
        """What training took; its presence says that training is finished."""
        return self.path / "training.json"

    @property
    def checkpoints(self) -> Path:
        """The newest checkpoints of an unfinished training."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Generations, answers and scores, a folder per task."""
        return self.path / "evaluation"


def open_run_dir(path: Path, identity: Mapping[str, Any]) -> RunDir:
    """The run's folder, made if need be.

    Raises:
        UserError: the folder belongs to a run of another configuration, or cannot be written.
    """
    folder = RunDir(path)
    wanted = json.loads(json.dumps(identity))
    try:
        path.mkdir(parents=True, exist_ok=True)
        for unfinished in path.glob(f"{folder.identity.name}.*.tmp"):  # of a killed process
            unfinished.unlink()
        if folder.identity.is_file():
            found = json.loads(folder.identity.read_text(encoding="utf-8"))
            if found != wanted:
                raise UserError(_another(path, found, wanted))
        elif any(entry.name not in _NOT_THE_RUNS for entry in path.iterdir()):
            raise UserError(f"run_dir={path}: holds other files and no run; give run_dir= an empty or new place")
        else:
            write_atomic(folder.identity, json.dumps(wanted, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder.identity}: is damaged ({error}); remove it or the folder") from error
    return folder


def check_input_hashes(run: RunDir, fingerprints: Mapping[str, str]) -> None:
    """Note what a training begins with; from then on it must stay the same.

    Args:
        run: the run.
        fingerprints: of the backbone's weights and of the training examples, by name.

    Raises:
        UserError: what lies at the same place is not what the run began with.
    """
    if not run.inputs.is_file():
        write_atomic(run.inputs, json.dumps(dict(fingerprints), indent=2) + "\n")
        return
    began = json.loads(run.inputs.read_text(encoding="utf-8"))
    changed = [name for name, value in fingerprints.items() if began.get(name) != value]
    if changed:
        raise UserError(
            f"{run.path}: the {' and the '.join(changed)} changed since this run began; its "
            "training is not of what lies there now. Remove that folder to train anew, or give "
            "run_dir= another place"
        )


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder; the lock goes with the process, however it ends.

    Args:
        path: the folder, made if need be.
        wait: until another process has left it (a line says so), in place of refusing.

    Raises:
        UserError: another process is at work in the folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        stream = (path / "lock").open("w")
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror or error})") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(
                    f"run_dir={path}: another process is at work in this run; wait for it to end"
                ) from error
            print_above_bar(f"waits for another process, which is at work in {path}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def format_diff(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What differs between two configurations, a line per key; "" if nothing does."""
    found = diff_dicts(there, asked).items()
    return "\n".join(f"  {key}: there {here!r}, asked {wanted!r}" for key, (here, wanted) in found)


def diff_dicts(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys that differ between two configurations: what is there, what is asked."""
    here, wanted = _flat(there), _flat(json.loads(json.dumps(asked)))
    keys = sorted(here.keys() | wanted.keys())
    pairs = {key: (here.get(key), wanted.get(key)) for key in keys}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _another(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return (
        f"run_dir={path}: holds a run of another configuration; give run_dir= another place, or "
        f"leave it out\n{format_diff(found, wanted)}"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
