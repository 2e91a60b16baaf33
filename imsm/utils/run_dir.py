"""A run directory: the paths of its files, and checks that it belongs to the current run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsm.utils.dicts import format_diff
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

# Written by the processes of a run, possibly before identity.json.
_PROCESS_FILES = ("lock", "processes")


@dataclass
class RunDir:
    """The files of one run.

    Attributes:
        path: The run directory.
        identity: JSON file with all settings that affect training.
        inputs: JSON file with the hashes of the weights and examples that training started from.
        model: Folder of the trained model: configuration, adapter, gate, tokenizer.
        adapter: Folder of the trained model's adapter.
        trained: JSON file with the training summary; it exists once training is finished.
        checkpoints: Folder of the newest checkpoints of an unfinished training.
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
        self.evaluation = self.path / "evaluation"


def open_run_dir(path: Path, identity: Mapping[str, Any]) -> RunDir:
    """Return the run directory, created if missing.

    Raises:
        UserError: The folder belongs to a run with another identity, or cannot be written.
    """
    run = RunDir(path)
    identity = json.loads(json.dumps(identity))
    try:
        path.mkdir(parents=True, exist_ok=True)
        for temporary in path.glob(f"{run.identity.name}.*.tmp"):  # of a killed process
            temporary.unlink()
        if not run.identity.is_file():
            if any(entry.name not in _PROCESS_FILES for entry in path.iterdir()):
                raise UserError(f"run_dir={path}: contains files but no run; set run_dir= to an empty or new folder")
            write_atomic(run.identity, json.dumps(identity, indent=2) + "\n")
            return run
        text = run.identity.read_bytes()
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror or error})") from error
    try:
        saved = json.loads(text)
    except ValueError as error:
        raise UserError(f"{run.identity}: is damaged ({error}); remove it or the folder") from error
    if saved != identity:
        raise UserError(
            f"run_dir={path}: contains a run with another configuration; set run_dir= to another folder, "
            f"or leave it out\n{format_diff(saved, identity)}"
        )
    return run


def check_input_hashes(run: RunDir, hashes: Mapping[str, str]) -> None:
    """Save the hashes of a training's inputs by name, or compare them with the saved ones.

    Raises:
        UserError: An input changed since the training started.
    """
    if not run.inputs.is_file():
        write_atomic(run.inputs, json.dumps(dict(hashes), indent=2) + "\n")
        return
    saved = json.loads(run.inputs.read_text(encoding="utf-8"))
    changed = [name for name, value in hashes.items() if saved.get(name) != value]
    if changed:
        raise UserError(
            f"run_dir={run.path}: the {' and the '.join(changed)} changed since this run started; remove that "
            "folder to train again, or set run_dir= to another one"
        )
