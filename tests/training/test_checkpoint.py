"""Checkpoints: content, damage, disk space, and size at the paper's scale."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.plan.plan import build_plan_model
from imsm.training.checkpoint import (
    TrainingState,
    archive_later,
    check_disk_space,
    list_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    verify,
)
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.utils.errors import RunError, UserError
from tests.helpers.config import config
from tests.helpers.damage import delete, flip_bit, truncate
from tests.helpers.disk_events import record_disk_events
from tests.training.tiny_run import IDENTITY, TinyRun, stopped_run

FILES = [
    "trainables.safetensors", "optimizer.safetensors", "callbacks.safetensors", "rng.safetensors",
    "state.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with one checkpoint."""
    run = TinyRun(tmp_path_factory.mktemp("run"))
    save(run, step=1)
    return run


def save(run: TinyRun, *, step: int) -> Path:
    return save_checkpoint(
        run.folder,
        state=TrainingState(step=step),
        metrics={"loss": 1.0, "gate_mean": float("nan")},
        engine=run.engine,
        callbacks=run.callbacks,
        identity=IDENTITY,
    )


@pytest.mark.parametrize("damage", [truncate, flip_bit, delete])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_not_loaded(
    saved: TinyRun, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    checkpoint = tmp_path / "step-1"
    shutil.copytree(list_checkpoints(saved.folder)[0], checkpoint)
    assert verify(checkpoint) is None
    damage(checkpoint / file)
    error = verify(checkpoint)
    assert error is not None and file in error
    with pytest.raises(RunError, match=file):
        load_checkpoint(checkpoint, engine=saved.engine, callbacks=saved.callbacks)


def test_a_checkpoint_of_a_cpu_run_does_not_open_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, reading its random state would take some hundred MB of its memory."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("CUDA was opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, opened)
    run = TinyRun(tmp_path)
    load_checkpoint(save(run, step=1), engine=run.engine, callbacks=run.callbacks)


def test_a_flipped_bit_is_found_after_the_checkpoint_was_used_once(saved: TinyRun, tmp_path: Path) -> None:
    """Size and time are kept, as on a failing disk."""
    checkpoint = tmp_path / "step-1"
    shutil.copytree(list_checkpoints(saved.folder)[0], checkpoint)
    load_checkpoint(checkpoint, engine=saved.engine, callbacks=saved.callbacks)
    for name in FILES:
        file = checkpoint / name
        times = file.stat()
        flip_bit(file)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert name in str(verify(checkpoint))
        flip_bit(file)
    assert verify(checkpoint) is None


def test_a_checkpoint_is_on_disk_before_the_one_that_it_replaces_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path)
    path = save(run, step=1)
    events = record_disk_events(monkeypatch)
    save(run, step=1)
    renamed = events.index(("rename", path))
    flushed = {path.name for name, path in events[:renamed] if name == "fsync"}
    assert {*FILES, f".{path.name}.new"} <= flushed
    assert [name for name, _ in events[renamed + 1 :]] == ["fsync", "delete"]
    assert events[renamed + 1] == ("fsync", run.folder)


def test_a_checkpoint_of_other_parameters_is_rejected(saved: TinyRun, tmp_path: Path) -> None:
    other = TinyRun(tmp_path, method="ia3")
    with pytest.raises(RunError, match="its parameters are not those"):
        load_checkpoint(list_checkpoints(saved.folder)[0], engine=other.engine, callbacks=other.callbacks)


def test_only_finite_metrics_are_saved(saved: TinyRun) -> None:
    state = read_state(list_checkpoints(saved.folder)[0])
    assert state["metrics"] == {"loss": 1.0}
    assert state["identity"] == IDENTITY


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    save(run, step=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step 1 could not be written.*earlier checkpoints are kept"):
            save(run, step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (checkpoint,) = list_checkpoints(run.folder)
    assert run.saved_steps() == [0]
    assert [path.name for path in run.folder.iterdir()] == [checkpoint.name]


def test_a_checkpoint_holds_no_frozen_weight_and_no_pickle(tmp_path: Path) -> None:
    run = stopped_run(tmp_path, after=1)
    trainable = sum(4 * p.numel() for p in run.model.parameters() if p.requires_grad)
    sizes = {path.name: path.stat().st_size for path in list_checkpoints(run.folder)[0].iterdir()}
    assert sizes.keys() == set(FILES)
    assert sum(sizes.values()) < 4 * trainable + 20_000


def test_later_checkpoints_are_renamed_out_of_the_way(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    first, *_ = (save(run, step=step) for step in (1, 2, 3))
    archive_later(first, run.folder)
    assert run.saved_steps() == [1]
    save(run, step=2)
    assert run.saved_steps() == [2, 1]
    assert len(list(run.folder.glob("abandoned-*"))) == 2


def test_low_disk_space_is_a_warning(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    warning = check_disk_space(tmp_path / "not" / "yet", size=free)
    assert warning is not None and "free some space" in warning
    assert check_disk_space(tmp_path, size=1) is None


def materialize_trainables(model: SiameseForCausalLM) -> SiameseForCausalLM:
    """Give adapter and gate random values; the backbone stays on the meta device."""
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, nn.Parameter(torch.randn(parameter.shape)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["imsm", "peft"])
def test_size_for_llama3_8b_with_lora(tmp_path: Path, method: str) -> None:
    model, _ = build_plan_model(config("backbone=llama3", f"method={method}"))
    assert model is not None
    model = materialize_trainables(model)
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-3, gate_learning_rate=None, weight_decay=0.0)
    engine = SingleDeviceEngine(
        model,
        optimizer=optimizer,
        lr_scheduler=build_lr_scheduler(
            optimizer, lr_scheduler_type="cosine", warmup_ratio=0.1, num_training_steps=10
        ),
        max_grad_norm=1.0,
        device=torch.device("cpu"),
    )
    trainables = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainables:
        parameter.grad = torch.randn_like(parameter)
    engine.step()
    state = TrainingState(step=1)
    path = save_checkpoint(tmp_path, state=state, metrics={}, engine=engine, callbacks=None, identity={})
    size = sum(file.stat().st_size for file in path.iterdir())
    trainable = sum(4 * p.numel() for p in trainables)
    assert trainable == 4 * (6_979_584 if method == "imsm" else 6_815_744)
    assert 3 * trainable < size < 3.1 * trainable  # values and two moments
