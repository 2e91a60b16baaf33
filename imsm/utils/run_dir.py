"""A run directory: the paths of its files, and checks that it belongs to the current run."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsm.utils.dicts import format_diff
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.json_files import hash_values, read_hashed_json, read_json
from imsm.utils.paths import check_links

# Written by the processes of a run, possibly before identity.json.
_PROCESS_FILES = ("lock", "processes")
MODEL_HASH = "model_hash"
"""Key of the hash of `model/hashes.json` in `training.json`."""
IDENTITY_HASH = "identity_hash"
"""Key of the hash of the run's identity in `training.json`."""


@dataclass
class RunDir:
    """The files of one run.

    Attributes:
        path: The run directory.
        identity: JSON file with all settings that affect training.
        inputs: JSON file with the hashes of the weights and examples that training started from.
        model: Folder of the trained model: configuration, adapter, gate, tokenizer, `hashes.json`.
        adapter: Folder of the trained model's adapter.
        trained: JSON file with the training summary; it exists once training is finished.
        checkpoints: Folder of the newest checkpoints of an unfinished training.
        kept_checkpoints: Folder of the models after each save step, with `evaluation.checkpoints`.
        evaluation: Folder of responses, predictions and scores, one folder per task.
    """

    path: Path

    def __post_init__(self) -> None:
        self.identity = self.path / "identity.json"
        self.inputs = self.path / "input_hashes.json"
        self.model = self.path / "model"
        self.adapter = self.model / "adapter"
        self.trained = self.path / "training.json"
        self.checkpoints = self.path / "checkpoints"
        self.kept_checkpoints = self.path / "kept_checkpoints"
        self.evaluation = self.path / "evaluation"

    @property
    def is_trained(self) -> bool:
        """Whether `training.json` exists, readable or not."""
        return os.path.lexists(self.trained)


def open_run_dir(path: Path, identity: Mapping[str, Any]) -> RunDir:
    """Return the run directory, created if missing.

    Raises:
        UserError: The folder belongs to a run with another identity, contains a link that leads out of it, or cannot
            be written.
    """
    run = RunDir(path)
    identity = json.loads(json.dumps(identity))
    try:
        path.mkdir(parents=True, exist_ok=True)
        for temporary in path.glob(f"{run.identity.name}.*.tmp"):  # of a killed process
            temporary.unlink()
        # lexists: a folder or a broken link in its place is damage, not a new run
        if not os.path.lexists(run.identity):
            if any(entry.name not in _PROCESS_FILES for entry in path.iterdir()):
                raise UserError(
                    f"run_dir={path}: contains files but no run ({run.identity.name} is missing); set run_dir= to an "
                    "empty or new folder, or restore that file"
                )
            write_atomic(run.identity, json.dumps(identity, indent=2) + "\n")
            return run
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror or error})") from error
    check_links(path)
    saved = read_identity(run)
    if not saved.keys() & identity.keys():
        raise UserError(f"{run.identity}: is damaged (describes no run); {_restore(run)}")
    if saved != identity:
        raise UserError(
            f"run_dir={path}: contains a run with another configuration ({run.identity.name}); set run_dir= to "
            f"another folder, or leave it out\n{format_diff(saved, identity)}"
        )
    return run


def read_identity(run: RunDir, shape: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return the content of `identity.json`; ``shape`` as in `read_json`.

    Raises:
        UserError: The file is missing or damaged.
    """
    identity: dict[str, Any] = read_json(run.identity, fix=_restore(run), shape=shape)
    return identity


def read_training(run: RunDir) -> dict[str, Any]:
    """Return the content of `training.json`, without its hash.

    Raises:
        UserError: The file is missing, damaged, was changed since it was written, or is of another run.
    """
    shape = {"trainable_parameters": dict, MODEL_HASH: str}
    training = read_hashed_json(run.trained, fix=_restore(run), shape=shape)
    # earlier versions wrote no such hash; who needs identity.json reports its loss
    known = IDENTITY_HASH in training and os.path.lexists(run.identity)
    if known and training[IDENTITY_HASH] != hash_values(read_identity(run)):
        raise UserError(
            f"{run.trained}: is of another run than {run.identity.name}, or that file was changed; {_restore(run)}"
        )
    return training


def _restore(run: RunDir) -> str:
    return f"restore the file, or remove the folder {run.path} and run its command again"


def check_input_hashes(run: RunDir, hashes: Mapping[str, str]) -> None:
    """Save the hashes of a training's inputs by name, or compare them with the saved ones.

    Raises:
        UserError: An input changed since the training started, or the saved hashes are lost.
    """
    started = run.is_trained or run.checkpoints.exists()
    if not started and not os.path.lexists(run.inputs):
        write_atomic(run.inputs, json.dumps(dict(hashes), indent=2) + "\n")
        return
    saved = read_input_hashes(run, hashes)
    changed = [name for name, value in hashes.items() if saved[name] != value]
    if changed:
        raise UserError(
            f"run_dir={run.path}: the {' and the '.join(changed)} changed since this run started "
            f"({run.inputs.name}); remove that folder to train again, or set run_dir= to another one"
        )


def read_input_hashes(run: RunDir, names: Iterable[str] = ("backbone",)) -> dict[str, str]:
    """Return the saved hashes of a training's inputs, at least those of ``names``.

    Raises:
        UserError: The file is missing or damaged.
    """
    hashes: dict[str, str] = read_json(run.inputs, fix=_restore(run), shape=dict.fromkeys(names, str))
    return hashes
