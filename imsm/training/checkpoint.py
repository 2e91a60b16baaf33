"""Write, verify and load training checkpoints; frozen weights are not saved.

    checkpoints/step-00000120/
        trainables.safetensors  optimizer.safetensors  callbacks.safetensors  rng.safetensors
        state.json              training state, metrics, LR schedule, run identity and the
                                SHA-256 of the other files

Tensors are unsharded and named as in the model, independent of the number of processes.

A checkpoint is written to a temporary folder, `state.json` last, and then renamed: a folder with
the final name is complete, and later damage is found through the hashes.
"""

import base64
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imsm.models.adapters.base import TrainingCallbacks
from imsm.training.engines.base import Engine
from imsm.utils.errors import RunError, UserError
from imsm.utils.files import fsync, fsync_tree
from imsm.utils.hashing import hash_file, hash_text

FORMAT = 4
STATE_FILE = "state.json"
_TENSOR_FILES = ("trainables", "optimizer", "callbacks", "rng")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Optimizer steps, training seconds and tokens so far, and the last step's loss."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None


def save_checkpoint(
    folder: Path,
    *,
    state: TrainingState,
    metrics: Mapping[str, float],
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    identity: Mapping[str, Any],
) -> Path:
    """Write a checkpoint below ``folder`` and return its path.

    Every process must call this; rank 0 writes. Non-finite metrics are dropped. ``identity`` holds
    the settings that determine the training; it is compared on resume.

    Raises:
        UserError: The checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    path = folder / f"step-{state.step:08d}"
    optimizer_tensors, optimizer_values = engine.optimizer_state_dict()
    # the state dicts are collective in ZeRO, so every process builds them and only rank 0 writes
    tensors = {
        "trainables": engine.trainable_state_dict(),
        "optimizer": _to_cpu(optimizer_tensors),
        "callbacks": _to_cpu(callbacks.state()) if callbacks else {},
        "rng": _gather_rng_states(engine),
    }
    values = {
        "format": FORMAT,
        "training_state": asdict(state),
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "optimizer": optimizer_values,
        "identity": dict(identity),
    }
    engine.dist_context.run_on_main(lambda: _write(path, tensors, values))
    return path


def load_checkpoint(path: Path, *, engine: Engine, callbacks: TrainingCallbacks | None) -> TrainingState:
    """Restore a checkpoint and return its training state.

    Raises:
        RunError: The checkpoint is damaged or belongs to a model with other trainables.
    """
    if error := verify(path):
        raise RunError(f"checkpoint {path}: {error}")
    values = read_state(path)
    trainables, optimizer, callback_state, rng = (load_file(path / f"{name}.safetensors") for name in _TENSOR_FILES)
    if engine.trainable_state_dict().keys() != trainables.keys():
        raise RunError(f"checkpoint {path}: its parameters are not those that this model trains")
    engine.load_trainable_state_dict(trainables)
    engine.load_optimizer_state_dict(optimizer, values["optimizer"])
    if callbacks is not None:
        callbacks.load_state(callback_state)
    state = TrainingState(**values["training_state"])
    # last, so that nothing above can advance it
    _restore_rng(rng, engine=engine, step=state.step)
    return state


def load_trainable_params(path: Path, *, engine: Engine) -> None:
    """Load the trainables of a checkpoint, without optimizer or random state."""
    engine.load_trainable_state_dict(load_file(path / "trainables.safetensors"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints below ``folder``, newest first; they may be damaged."""
    return sorted(folder.glob("step-*"), reverse=True)


def archive_later(path: Path, folder: Path) -> None:
    """Rename checkpoints later than ``path`` so that new ones can be written."""
    for later in list_checkpoints(folder):
        if later.name > path.name:
            archived = later.with_name(f"abandoned-{later.name}")
            shutil.rmtree(archived, ignore_errors=True)
            later.rename(archived)


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `state.json`.

    Raises:
        ValueError: The file is missing, damaged or of another format.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{STATE_FILE} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{STATE_FILE} is damaged ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{STATE_FILE} is not of format {FORMAT}")
    if values.get("sha256") != _hash_values(values):
        raise ValueError(f"{STATE_FILE} is damaged: its hash differs")
    return values


def verify(path: Path) -> str | None:
    """Return why a checkpoint is unusable, or None if every file has its recorded hash."""
    try:
        hashes = read_state(path)["files"]
    except (ValueError, KeyError) as error:
        return str(error)
    for name, expected in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        try:
            if hash_file(path / name) != expected:
                return f"{name} is damaged: its hash differs"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def check_disk_space(folder: Path, *, size: int) -> str | None:
    """Return a warning if the disk of ``folder`` lacks space for two checkpoints of ``size`` bytes."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    # two: an old checkpoint is deleted only after its successor is complete
    if free >= 2 * size:
        return None
    return (
        f"{folder}: {free / 1e6:,.0f} MB free, and a checkpoint takes about {size / 1e6:,.0f} MB; "
        "free some space, otherwise training stops at the next checkpoint"
    )


def _hash_values(values: Mapping[str, Any]) -> str:
    hashed = {key: value for key, value in values.items() if key != "sha256"}
    return hash_text(json.dumps(hashed, sort_keys=True))


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _write(path: Path, tensors: Mapping[str, dict[str, torch.Tensor]], values: dict[str, Any]) -> None:
    """Write a complete checkpoint or none."""
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for name, state_dict in tensors.items():
            save_file(state_dict, new / f"{name}.safetensors")
        # state.json is written last: a folder without it is not a checkpoint
        values["files"] = {file.name: hash_file(file) for file in sorted(new.iterdir())}
        values["sha256"] = _hash_values(values)
        (new / STATE_FILE).write_text(json.dumps(values), encoding="utf-8")
        # without it a power failure could keep the rename and lose the content
        fsync_tree(new)
        shutil.rmtree(old, ignore_errors=True)
        # a folder cannot be renamed over a non-empty one
        if path.exists():
            path.rename(old)
        new.rename(path)
        # before any older checkpoint is deleted
        fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = list_checkpoints(path.parent)
        earlier = f"earlier checkpoints are kept in {path.parent}" if kept else "there is none"
        raise UserError(
            f"the checkpoint of step {values['training_state']['step']} could not be written ({error}); {earlier}. "
            "Free some space and rerun the same command"
        ) from error


def _gather_rng_states(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the random states of all processes as "cpu.<rank>", and as "cuda.<rank>" if they train on GPUs."""
    local = {"cpu": torch.get_rng_state()}
    # by the engine's device: on a machine with a GPU, reading its state would open a CUDA context in a run on the CPU
    if engine.device.type == "cuda":
        local["cuda"] = torch.cuda.get_rng_state(engine.device)
    # as text over the store: NCCL cannot gather CPU tensors
    encoded = json.dumps({k: base64.b64encode(v.numpy().tobytes()).decode() for k, v in local.items()})
    return {
        f"{device}.{rank}": torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8).clone()
        for rank, text in enumerate(engine.dist_context.all_gather(encoded))
        for device, state in json.loads(text).items()
    }


def _restore_rng(states: Mapping[str, torch.Tensor], *, engine: Engine, step: int) -> None:
    """Set this process's random state; a rank or device without a saved one is seeded by rank and step."""
    rank = engine.dist_context.rank
    devices: dict[str, tuple[Callable[[torch.Tensor], None], Callable[[int], Any]]] = {
        # torch.manual_seed also seeds CUDA, so the CPU comes first
        "cpu": (torch.set_rng_state, torch.manual_seed)
    }
    if engine.device.type == "cuda":
        devices["cuda"] = (partial(torch.cuda.set_rng_state, device=engine.device), torch.cuda.manual_seed)
    for device, (restore, seed) in devices.items():
        if f"{device}.{rank}" in states:
            restore(states[f"{device}.{rank}"])
        else:
            # a hash of integers is the same in every Python process, unlike that of a string
            seed(hash((rank, step)))
