"""Stage two: train adapter and gate, or go on training them, and write the finished model."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imsm.adapters.adapter import AdapterSpec
from imsm.assemble import build_model, count_trainable
from imsm.config import RunConfig
from imsm.data.batches import training_order
from imsm.errors import UserError
from imsm.files import write_atomic
from imsm.identity import run_identity
from imsm.run_folder import RunDir
from imsm.siamese.model import SiameseForCausalLM
from imsm.stages.bank import open_hidden_state_cache, check_cache_fits
from imsm.stages.data import tokenized_training_set
from imsm.stages.engine import build_engine, micro_batch_size
from imsm.stages.going_on import load_parent_weights
from imsm.stages.parts import build_adapter, build_kl_regularizer, model_kwargs, format_trainable
from imsm.training.checkpoint import archive_later
from imsm.training.keep import CheckpointManager
from imsm.training.loop import BatchPlan, Log, train
from imsm.training.resume import checkpoint_to_resume

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from imsm.data.tokenise import TokenisedExample
    from imsm.processes.world import DistributedContext


def train_run(
    config: RunConfig,
    *,
    run: RunDir,
    before: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    log: Log,
    device: torch.device,
    world: DistributedContext,
) -> SiameseForCausalLM | None:
    """Train a run's adapter and gate; `training.json`, written last, says that it is finished.

    A stage of a sequence starts from what the run in the folder ``before`` learned. With
    `frozen_adapter` the gate alone learns: the adapter's method has no part in the training.

    Returns:
        The trained model; None where DeepSpeed took it over, so that it has to be loaded.
    """
    every, examples = tokenized_training_set(config, tokenizer)
    items, validation = _held_out(config, every)
    recipe = config.trainer
    batching = BatchPlan(
        epochs=recipe.num_epochs,
        batch_size=recipe.global_batch_size,
        micro_batch_size=micro_batch_size(config, processes=world.size),
        seed=config.seed,
        group_by_length=recipe.group_by_length,
    )
    steps = batching.steps(len(items))
    start = _start(config, run, world)
    adapter = build_adapter(config)
    model = new_model(config, adapter, device=device)
    if before is not None:
        load_parent_weights(model, before)
    model.kl_regularizer = build_kl_regularizer(config)
    parameters = count_trainable(model)
    if config.frozen_adapter is not None and not parameters["gate"]:
        raise UserError(
            f"gate={config.gate.name}: has no parameters, and nothing else learns with "
            "frozen_adapter; choose another gate (gate=query)"
        )
    if world.is_main:
        print(format_trainable(parameters))
    pad_id = tokenizer.pad_token_id
    world.run_on_main(lambda: check_cache_fits(config, model, every, pad_id=pad_id))
    bank = cache(lambda: open_hidden_state_cache(config, model, every, pad_id=pad_id, world=world))
    if world.store is not None:
        bank()  # before DeepSpeed takes the model over
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    hooks = None
    if adapter.callbacks and config.frozen_adapter is None:
        hooks = adapter.callbacks(cast("PeftModel", model.adapted), steps)
    with build_engine(config, model, steps=steps, device=device, world=world) as engine:
        keeper = CheckpointManager(
            folder=run.checkpoints,
            identity=run_identity(config),
            engine=engine,
            hooks=hooks,
            minutes=recipe.save_minutes,
            steps=recipe.save_steps,
            keep=recipe.save_total_limit,
            best_by=recipe.metric_for_best_model,
            start=start,
        )
        summary = train(
            model,
            items,
            engine=engine,
            hooks=hooks,
            batching=batching,
            keeper=keeper,
            pad_id=pad_id,
            log=log,
            validation=validation,
            bank=bank,
        )
        best = keeper.load_best()
        with engine.full_params():
            model.save_pretrained(run.model, is_main_process=world.is_main)
    record = summary.record() | examples | best | {"trainable_parameters": parameters}
    record |= {"engine": config.engine.name, "processes": world.size}
    world.run_on_main(lambda: _finish(config, run, tokenizer, record))
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_disable()
    return model if world.store is None else None


def _finish(
    config: RunConfig, run: RunDir, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]
) -> None:
    """What stands beside the finished model; its checkpoints have had their time.

    A frozen adapter is kept file by file: ZeRO's third stage has it shared out, like the backbone.
    """
    if config.frozen_adapter is not None:
        finished = RunDir(Path(config.frozen_adapter)).adapter
        shutil.copytree(finished, run.adapter, dirs_exist_ok=True)
    tokenizer.save_pretrained(run.model)
    write_atomic(run.trained, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _start(config: RunConfig, run: RunDir, world: DistributedContext) -> Path | None:
    """Where the training goes on; None: it begins, and what was kept of another start goes."""
    identity = run_identity(config)

    def find() -> str | None:
        start = checkpoint_to_resume(config.resume, run.checkpoints, identity=identity)
        if start is None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            return None
        archive_later(start, run.checkpoints)
        return str(start)

    found = world.run_on_main(find)
    return None if found is None else Path(found)


def _held_out(
    config: RunConfig, items: list[TokenisedExample]
) -> tuple[list[TokenisedExample], list[TokenisedExample]]:
    """What is learned, and the examples that are kept out of it to validate on.

    Raises:
        UserError: nothing would be left to learn.
    """
    count = config.trainer.validation_size
    if not count:
        return items, []
    if count >= len(items):
        raise UserError(
            f"trainer.validation_size={count}: there are {len(items)} training examples, and "
            "some must be left to learn; choose fewer"
        )
    (order,) = training_order(len(items), batch_size=len(items), seed=config.seed, epoch=-1)
    kept_out = set(order[:count])
    learned = [item for place, item in enumerate(items) if place not in kept_out]
    return learned, [items[place] for place in sorted(kept_out)]


def new_model(
    config: RunConfig, adapter: AdapterSpec | None, *, device: torch.device
) -> SiameseForCausalLM:
    """The run's model as training begins; without an adapter the original alone."""
    chosen: AdapterSpec | Path | None = adapter
    if adapter is not None and config.frozen_adapter is not None:
        chosen = RunDir(Path(config.frozen_adapter)).adapter
    return build_model(adapter=chosen, device=device, **model_kwargs(config))


def finished_model(
    config: RunConfig, run: RunDir, *, device: torch.device
) -> SiameseForCausalLM:
    """The model that training left; the backbone alone for the original."""
    if config.method.trainable:
        return SiameseForCausalLM.from_pretrained(run.path, device=device)
    return new_model(config, None, device=device)
