"""Checkpoints: trainables, optimizer, schedule, random states and position; no frozen weight.

    checkpoints/step-00000120/
        trainables.safetensors  optimizer.safetensors  hooks.safetensors  random.safetensors
        state.json              position, what was measured, schedule, whose run it is, SHA-256 of
                                the other files

Values are whole and named as in the model, whatever number of processes they came from.

A checkpoint is written beside its place and renamed, `state.json` last: a folder with that name
is whole, unless the disk harmed it later, which the digests tell. The newest ones are kept.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imsm.utils.errors import RunError, UserError
from imsm.utils.hashing import hash_file_cached, hash_text

if TYPE_CHECKING:
    from imsm.distributed.context import DistributedContext
    from imsm.models.adapters.base import TrainingCallbacks
    from imsm.training.engines.base import Engine

FORMAT = 3
STATE = "state.json"
_PARTS = ("trainables", "optimizer", "hooks", "random")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far a training has come: optimizer steps, seconds, tokens, the last step's loss."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None


def save_checkpoint(
    folder: Path,
    *,
    progress: TrainingState,
    measured: Mapping[str, float],
    engine: Engine,
    hooks: TrainingCallbacks | None,
    identity: Mapping[str, Any],
) -> Path:
    """Write the state after so many optimizer steps below ``folder``; returns where it lies.

    All processes must call it; the first one writes.

    Args:
        folder: of the run's checkpoints.
        progress: how far the training has come.
        measured: at the last step, by name.
        engine: trainables, optimizer and schedule.
        hooks: the PEFT method's.
        identity: whose checkpoint it is: what decides the training.

    Raises:
        UserError: it could not be written (a full disk, say); the checkpoints before it are kept.
    """
    place = folder / f"step-{progress.step:08d}"
    tensors, rest = engine.state()
    parts = {
        "trainables": engine.trainable_state_dict(),
        "optimizer": _on_cpu(tensors),
        "hooks": _on_cpu(hooks.state()) if hooks else {},
        "random": _random_states(engine.dist_context),
    }
    state = {
        "format": FORMAT,
        "progress": asdict(progress),
        "measured": {k: v for k, v in measured.items() if math.isfinite(v)},
        "engine": rest,
        "identity": dict(identity),
    }
    engine.dist_context.run_on_main(lambda: _write(place, parts, state))
    return place


def load_checkpoint(place: Path, *, engine: Engine, hooks: TrainingCallbacks | None) -> TrainingState:
    """Restore what ``save_checkpoint`` wrote; returns how far it had come.

    Raises:
        RunError: the checkpoint does not fit the model, or is damaged.
    """
    if problem := verify(place):
        raise RunError(f"checkpoint {place}: {problem}")
    state = read_state(place)
    trainables, tensors, hook_state, random = (load_file(place / f"{name}.safetensors") for name in _PARTS)
    if engine.trainable_state_dict().keys() != trainables.keys():
        raise RunError(f"checkpoint {place}: holds other parameters than this model trains")
    engine.load_trainables(trainables)
    engine.load_state(tensors, state["engine"])
    if hooks is not None:
        hooks.load_state(hook_state)
    progress = TrainingState(**state["progress"])
    _restore_random(random, rank=engine.dist_context.rank, step=progress.step)
    return progress


def load_values(place: Path, *, engine: Engine) -> None:
    """Restore the trainables of a checkpoint alone: what the model is, not how it goes on."""
    engine.load_trainables(load_file(place / "trainables.safetensors"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below ``folder``, the newest first, damaged ones among them."""
    return sorted(folder.glob("step-*"), reverse=True)


def archive_later(start: Path, folder: Path) -> None:
    """Take the checkpoints of later steps than ``start``'s out of the way of those to come.

    They are of a training that went another way, or damaged; renamed, they count no more.
    """
    for place in checkpoints(folder):
        if place.name > start.name:
            aside = place.with_name(f"abandoned-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)


def read_state(place: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint.

    Raises:
        ValueError: it is not there, is no JSON, or is of another format.
    """
    try:
        state = json.loads((place / STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{STATE} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{STATE} is damaged ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{STATE} is not of format {FORMAT}")
    if state.get("digest") != _own_digest(state):
        raise ValueError(f"{STATE} is damaged: it is not what was written")
    return state


def verify(place: Path) -> str | None:
    """Why a checkpoint cannot be used; None if every file is as it was written."""
    try:
        files = read_state(place)["files"]
    except (ValueError, KeyError) as error:
        return str(error)
    for name, digest in files.items():
        if not (place / name).is_file():
            return f"{name} is missing"
        if hash_file_cached(place / name) != digest:
            return f"{name} is damaged: it is not what was written"
    return None


def check_disk_space(folder: Path, *, size: int) -> str | None:
    """A warning if the disk below ``folder`` has no room for two checkpoints of ``size`` bytes."""
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free >= 2 * size:
        return None
    return (
        f"{folder}: {free / 1e6:,.0f} MB are free and a checkpoint takes about {size / 1e6:,.0f} "
        "MB; free some space, or the training stops when it is to be kept"
    )


def _own_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state's values but for this one."""
    values = {key: value for key, value in state.items() if key != "digest"}
    return hash_text(json.dumps(values, sort_keys=True))


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _write(place: Path, parts: Mapping[str, dict[str, torch.Tensor]], state: dict) -> None:
    """Write a whole checkpoint, or nothing."""
    new = place.with_name(f".{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for name, values in parts.items():
            save_file(values, new / f"{name}.safetensors")
        state["files"] = {file.name: hash_file_cached(file) for file in sorted(new.iterdir())}
        state["digest"] = _own_digest(state)
        (new / STATE).write_text(json.dumps(state), encoding="utf-8")
        _flush(new)
        old = place.with_name(f".{place.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        folder = place.parent
        kept = f"those before it are kept in {folder}" if checkpoints(folder) else "there is none"
        step = state["progress"]["step"]
        raise UserError(
            f"the checkpoint of step {step} could not be written ({error}); {kept}. "
            "Free some space and give the same command again"
        ) from error


def _random_states(dist_context: DistributedContext) -> dict[str, torch.Tensor]:
    """Those of all processes, as "cpu.<rank>" and "cuda.<rank>"."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    text = json.dumps({k: base64.b64encode(v.numpy().tobytes()).decode() for k, v in own.items()})
    return {
        f"{device}.{rank}": torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8).clone()
        for rank, told in enumerate(dist_context.all_gather(text))
        for device, state in json.loads(told).items()
    }


def _restore_random(states: Mapping[str, torch.Tensor], *, rank: int, step: int) -> None:
    """This process's random state; one that was not there before gets one of its own."""
    if f"cpu.{rank}" in states:
        torch.set_rng_state(states[f"cpu.{rank}"])
    else:
        torch.manual_seed(hash((rank, step)))
    if not torch.cuda.is_available():
        return
    if f"cuda.{rank}" in states:
        torch.cuda.set_rng_state(states[f"cuda.{rank}"])
    else:
        torch.cuda.manual_seed(hash((rank, step)))


def _flush(folder: Path) -> None:
    """Have every file of a folder on the disk before the rename says that it is whole."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)
