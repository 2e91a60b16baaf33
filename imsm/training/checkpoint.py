"""Checkpoints: trainables, optimizer, schedule, random state and position; no frozen weight.

    trainables.safetensors  optimizer.safetensors  hooks.safetensors  random.safetensors  state.json

A checkpoint is written beside its place and renamed: what lies at its place is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imsm.errors import RunError, UserError

if TYPE_CHECKING:
    from imsm.adapters.adapter import Hooks
    from imsm.siamese.model import SiameseForCausalLM
    from imsm.training.engine import Engine

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come: optimizer steps, seconds, tokens, the last step's loss."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None


def trainable_state(model: SiameseForCausalLM) -> dict[str, torch.Tensor]:
    """The trainable parameters by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_checkpoint(
    folder: Path,
    *,
    progress: Progress,
    model: SiameseForCausalLM,
    engine: Engine,
    hooks: Hooks | None,
) -> None:
    """Write the state after so many optimizer steps to ``folder``, in place of what was there.

    Raises:
        UserError: it could not be written (a full disk, say); the checkpoint before it is kept.
    """
    new = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    tensors, rest = engine.state()
    try:
        new.mkdir(parents=True)
        save_file(trainable_state(model), new / "trainables.safetensors")
        save_file(_on_cpu(tensors), new / "optimizer.safetensors")
        save_file(_on_cpu(hooks.state()) if hooks else {}, new / "hooks.safetensors")
        save_file(_random_state(), new / "random.safetensors")
        state = {"format": FORMAT, "progress": asdict(progress), "engine": rest}
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        _flush(new)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = f"the one before it is kept in {folder}" if folder.exists() else "there is none yet"
        raise UserError(
            f"the checkpoint of step {progress.step} could not be written ({error}); {kept}. "
            "Free some space and give the same command again"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, *, model: SiameseForCausalLM, engine: Engine, hooks: Hooks | None
) -> Progress:
    """Restore what ``save_checkpoint`` wrote; returns how far it had come.

    Raises:
        RunError: the checkpoint does not fit the model, or is damaged.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        trainables = load_file(folder / "trainables.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        random = load_file(folder / "random.safetensors")
        hook_state = load_file(folder / "hooks.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(_damaged(folder, error)) from error
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != trainables.keys():
        raise RunError(_damaged(folder, "it holds other parameters than this model trains"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trainables[name])
    engine.load_state(tensors, state["engine"])
    if hooks is not None:
        hooks.load_state(hook_state)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return Progress(**state["progress"])


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint at ``folder``, also after a crash in the middle of a rename."""
    places = (folder, *(folder.with_name(folder.name + end) for end in (".new", ".old")))
    for candidate in places:
        if (candidate / "state.json").is_file():
            return candidate
    return None


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that is not needed any more."""
    for suffix in ("", ".new", ".old"):
        shutil.rmtree(folder.with_name(folder.name + suffix), ignore_errors=True)


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _flush(folder: Path) -> None:
    """Have every file of a folder on the disk before the rename says that it is whole."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)


def _damaged(folder: Path, reason: object) -> str:
    return (
        f"checkpoint {folder}: cannot be used ({reason}). Remove that folder to train from the "
        "start, or give `folder=` another place"
    )
