"""Stage two: train adapter and gate, or go on training them, and write the finished model."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, cast

from imsm.adapters.adapter import Adapter
from imsm.assemble import assemble, count_trainable
from imsm.config import RunConfig
from imsm.files import write_whole
from imsm.identity import run_identity
from imsm.run_folder import RunFolder
from imsm.siamese.model import SiameseForCausalLM
from imsm.stages.data import training_items
from imsm.stages.parts import adapter_of, parts_of, trainable_line
from imsm.tracking import Tracker
from imsm.training.engine import Engine
from imsm.training.local import LocalEngine
from imsm.training.loop import Batching, Checkpointing, train
from imsm.training.optimizer import build_optimizer, build_schedule
from imsm.training.resume import checkpoint_to_resume

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def train_run(
    config: RunConfig,
    *,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    tracker: Tracker,
    device: torch.device,
) -> SiameseForCausalLM:
    """Train a run's adapter and gate; `training.json`, written last, says that it is finished."""
    items, examples = training_items(config, tokenizer)
    recipe = config.trainer
    batching = Batching(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        seed=config.seed,
    )
    steps = batching.steps(len(items))
    checkpointing = _checkpointing(config, run)
    adapter = adapter_of(config)
    model = new_model(config, adapter, device=device)
    parameters = count_trainable(model)
    print(trainable_line(parameters))
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    summary = train(
        model,
        items,
        engine=_engine(config, model, steps=steps, device=device),
        hooks=adapter.hooks(cast("PeftModel", model.adapted), steps) if adapter.hooks else None,
        batching=batching,
        checkpointing=checkpointing,
        pad_id=tokenizer.pad_token_id,
        log=tracker.log,
    )
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    record = summary.record() | examples | {"trainable_parameters": parameters}
    write_whole(run.trained, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return model


def _checkpointing(config: RunConfig, run: RunFolder) -> Checkpointing:
    """Where the training goes on, and how it is kept from now on."""
    identity = run_identity(config)
    start = checkpoint_to_resume(config.resume, run.checkpoints, identity=identity)
    if start is None:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return Checkpointing(
        folder=run.checkpoints,
        identity=identity,
        minutes=config.trainer.checkpoint_minutes,
        steps=config.trainer.checkpoint_steps,
        keep=config.trainer.checkpoints_kept,
        start=start,
    )


def _engine(
    config: RunConfig, model: SiameseForCausalLM, *, steps: int, device: torch.device
) -> Engine:
    recipe = config.trainer
    optimizer = build_optimizer(
        model,
        name=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        gate_learning_rate=recipe.gate_learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = build_schedule(
        optimizer, name=recipe.schedule, warmup_ratio=recipe.warmup_ratio, steps=steps
    )
    return LocalEngine(
        optimizer=optimizer, schedule=schedule, clip_norm=recipe.clip_norm, device=device
    )


def new_model(
    config: RunConfig, adapter: Adapter | None, *, device: torch.device
) -> SiameseForCausalLM:
    """The run's model as training begins; without an adapter the original alone."""
    return assemble(adapter=adapter, device=device, **parts_of(config))


def finished_model(
    config: RunConfig, run: RunFolder, *, device: torch.device
) -> SiameseForCausalLM:
    """The model that training left; the backbone alone for the original."""
    if config.method.trained:
        return SiameseForCausalLM.from_pretrained(run.path, device=device)
    return new_model(config, None, device=device)
