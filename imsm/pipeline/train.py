"""Set up the training of a run, and save the trained model."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from imsm.config.identity import run_identity
from imsm.config.schema import RunConfig, TrainerConfig
from imsm.data.batching import training_order
from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group
from imsm.models.adapters.base import AdapterSpec, TrainingCallbacks
from imsm.models.builder import count_trainable
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.token_weights import TOKEN_WEIGHTS
from imsm.pipeline.data import tokenized_training_set
from imsm.pipeline.engine import batch_plan_of, build_engine, local_device
from imsm.pipeline.hidden_state_cache import check_cache_fits, open_hidden_state_cache
from imsm.pipeline.kept_checkpoints import keep_checkpoint
from imsm.pipeline.model import build_adapter, build_kl_regularizer, format_trainable, lock_step, new_model
from imsm.pipeline.rehearsal import rehearsal_examples
from imsm.pipeline.watch import Watch, open_watch
from imsm.training.acceleration import accelerated
from imsm.training.checkpoint import archive_later
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.engines.base import Engine
from imsm.training.rehearsal import Rehearsal
from imsm.training.trainer import AtSaveStep, BatchPlan, GetHiddenStateCache, TrainingSummary
from imsm.utils.errors import UserError
from imsm.utils.files import fsync_tree
from imsm.utils.hashing import hash_json
from imsm.utils.json_files import hash_values, write_hashed_json
from imsm.utils.machine import describe_machine
from imsm.utils.manifest import verify_run_model, write_manifest
from imsm.utils.run_dir import IDENTITY_HASH, MODEL_HASH, RunDir


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Arguments of `train` for one run, and the statistics recorded with its result."""

    model: SiameseForCausalLM
    tokenizer: PreTrainedTokenizerBase
    examples: list[TokenizedExample]
    validation: list[TokenizedExample]
    batch_plan: BatchPlan
    engine: Engine
    callbacks: TrainingCallbacks | None
    checkpoint_manager: CheckpointManager
    get_hidden_state_cache: GetHiddenStateCache
    rehearsal: Rehearsal | None
    at_save_step: AtSaveStep
    statistics: dict[str, Any]


@contextmanager
def prepare_training(
    config: RunConfig,
    run: RunDir,
    parent: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dist_context: DistributedContext,
    *,
    response_cache_dir: Path | None = None,
) -> Iterator[TrainingSetup]:
    """Build everything that `train` needs; the engine is closed on exit.

    With `frozen_adapter` only the gate is trained. ``parent`` is the run folder of the previous
    stage, whose weights are loaded; None to start fresh. ``response_cache_dir`` keeps the texts of rehearsal.

    Raises:
        UserError: The configuration does not fit the data, the model or the machine.
    """
    if config.evaluation.checkpoints:
        _check_keeping(config)
    tokenized, statistics = tokenized_training_set(config, tokenizer)
    examples, validation = _split_validation(config, tokenized)
    batch_plan = batch_plan_of(config, processes=dist_context.world_size)
    steps = _num_steps(config, batch_plan, len(examples))
    resume_from = _find_checkpoint(config, run, dist_context)
    adapter = build_adapter(config)
    if config.engine.fsdp2:
        # loading shards is collective
        init_process_group(dist_context, device=device, timeout_minutes=config.engine.collective_timeout_minutes)
    model, parameters = _initial_model(config, adapter, parent=parent, device=device)
    if config.engine.fsdp2:
        dist_context.lock_step = partial(lock_step, lambda: model)
    dist_context.run_on_main(lambda: print(format_trainable(parameters)))
    get_cache = _lazy_cache(config, model, tokenized, tokenizer.pad_token_id, dist_context)
    target_examples = tokenized[: statistics["examples"] - statistics["dropped"]]  # replay follows
    held_out = _common(target_examples, validation)
    watch = open_watch(config, model, tokenizer, held_out, processes=dist_context.world_size)
    watched = {} if watch is None else {"watch": watch.record()}
    rehearsal, text_statistics = _rehearsal(config, model, tokenizer, dist_context, response_cache_dir)
    if dist_context.store is not None:
        get_cache()  # DeepSpeed partitions the model, so the caches are computed before
        if rehearsal is not None:
            rehearsal.get_hidden_state_cache()
    if config.trainer.gradient_checkpointing:
        model.activation_checkpointing_enable()
    callbacks = _callbacks(config, adapter, model, steps)
    scheduled = batch_plan.num_scheduled_steps(len(examples))
    with (
        _acceleration(config.trainer, model),
        build_engine(config, model, scheduled_steps=scheduled, device=device, dist_context=dist_context) as engine,
    ):
        yield TrainingSetup(
            model=model,
            tokenizer=tokenizer,
            examples=examples,
            validation=validation,
            batch_plan=batch_plan,
            engine=engine,
            callbacks=callbacks,
            checkpoint_manager=_checkpoint_manager(config, run, engine, callbacks, resume_from=resume_from),
            get_hidden_state_cache=get_cache,
            rehearsal=rehearsal,
            at_save_step=_at_save_step(config, run, model, watch, engine=engine, last_step=steps),
            statistics=statistics | text_statistics | {"trainable_parameters": parameters} | watched,
        )


def _acceleration(recipe: TrainerConfig, model: SiameseForCausalLM) -> AbstractContextManager[None]:
    return accelerated(
        model,
        packing=recipe.packing,
        compile_layers=recipe.compile_layers,
        liger_kernel=recipe.liger_kernel,
        adapter_precision=recipe.adapter_precision,
    )


def _lazy_cache(
    config: RunConfig,
    model: SiameseForCausalLM,
    examples: list[TokenizedExample],
    pad_id: int,
    dist_context: DistributedContext,
    *,
    texts: bool = False,
) -> GetHiddenStateCache:
    """Check that the hidden-state cache fits, and return a function that computes it once, when it is called first."""
    dist_context.run_on_main(lambda: check_cache_fits(config, model, examples, pad_id=pad_id, texts=texts))
    options: dict[str, Any] = {"pad_id": pad_id, "dist_context": dist_context, "texts": texts}
    return cache(partial(open_hidden_state_cache, config, model, examples, **options))


def _common(examples: Sequence[TokenizedExample], others: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Return the examples that are among the others, too."""
    ids = set(map(id, others))
    return [each for each in examples if id(each) in ids]


def _callbacks(
    config: RunConfig, adapter: AdapterSpec, model: SiameseForCausalLM, steps: int
) -> TrainingCallbacks | None:
    if adapter.callbacks is None or config.frozen_adapter is not None:
        return None
    return adapter.callbacks(cast(PeftModel, model.adapted), steps)


def _num_steps(config: RunConfig, batch_plan: BatchPlan, num_examples: int) -> int:
    steps = batch_plan.num_steps(num_examples)
    if not steps:
        raise UserError(
            f"trainer.carry_over=true: {num_examples} examples fill no batch of {config.trainer.global_batch_size}; "
            "set trainer.carry_over=false"
        )
    return steps


def save_trained(
    config: RunConfig,
    setup: TrainingSetup,
    summary: TrainingSummary,
    *,
    run: RunDir,
    dist_context: DistributedContext,
    command: str | None = None,
) -> None:
    """Save the best or last model; `training.json`, written last, marks training as finished."""
    # before saving: replaces the last weights by those of the best checkpoint, if one is selected
    best = setup.checkpoint_manager.load_best()
    # files of an earlier, interrupted save
    dist_context.run_on_main(lambda: shutil.rmtree(run.model, ignore_errors=True))
    with setup.engine.full_params():
        setup.model.save_pretrained(run.model, is_main_process=dist_context.is_main)
    record = summary.record() | setup.statistics | best
    record |= {"engine": config.engine.name, "processes": dist_context.world_size}
    kind = "ram" if config.hidden_state_cache == "ram" else "disk"
    record |= {"hidden_state_cache": kind if summary.hidden_state_cache else "off"}
    record |= {"finished": time.strftime("%Y-%m-%d %H:%M")} | ({} if command is None else {"command": command})
    record |= {"machine": describe_machine(local_device(config, dist_context))}
    dist_context.run_on_main(lambda: _finish_run_dir(config, run, setup.tokenizer, record))
    if config.trainer.gradient_checkpointing:
        setup.model.activation_checkpointing_disable()


def check_resumable_method(config: RunConfig) -> None:
    """Check, before the first stage, that a later stage can resume from a saved model.

    Raises:
        UserError: The PEFT method trains an encoder that a saved model does not contain.
    """
    if _drops_encoder(config):
        raise UserError(
            f"peft={config.peft.name}: trains an encoder that is not saved with the model, so later stages cannot "
            "resume from it; use peft=prompt_tuning, prefix_tuning without a projection, or lora"
        )


def _drops_encoder(config: RunConfig) -> bool:
    """Return whether PEFT saves the virtual tokens that an encoder computes, and drops the encoder."""
    method = build_adapter(config).config
    peft_type = getattr(getattr(method, "peft_type", None), "value", None)
    return peft_type == "P_TUNING" or bool(getattr(method, "prefix_projection", False))


def _check_keeping(config: RunConfig) -> None:
    """Check that the model can be saved, and loaded again, at every save step (`evaluation.checkpoints`)."""
    given = "evaluation.checkpoints=true"
    if _drops_encoder(config):
        raise UserError(
            f"{given}: peft={config.peft.name} trains an encoder that is not saved with the model; omit it, or use "
            "peft=prompt_tuning, prefix_tuning without a projection, or lora"
        )
    if config.frozen_adapter is not None and config.engine.stage == 3:
        raise UserError(f"{given}: ZeRO stage 3 shards the frozen adapter; set engine=zero2, or omit it")


def parent_hash(parent: Path) -> str:
    """Return the hash of the model of the previous stage.

    Raises:
        UserError: The previous stage has not finished training, or its model changed since.
    """
    run = RunDir(parent)
    if not run.is_trained:
        raise UserError(
            f"{parent}: the previous stage has not finished training; run the complete task_sequence, which trains "
            "its stages in order"
        )
    return hash_json(sorted(verify_run_model(run).items()))


def _initial_model(
    config: RunConfig, adapter: AdapterSpec, *, parent: Path | None, device: torch.device
) -> tuple[SiameseForCausalLM, dict[str, int]]:
    """Return the model before its first step, and its trainable parameter counts."""
    model = new_model(config, adapter, device=device)
    if parent is not None:
        model.load_weights(RunDir(parent).model)
    # not part of the saved weights, so set after loading them
    model.kl_regularizer = build_kl_regularizer(config)
    model.token_weight = TOKEN_WEIGHTS.get(config.trainer.token_weight)
    parameters = count_trainable(model)
    if config.frozen_adapter is not None and not parameters["gate"]:
        raise UserError(
            f"gate={config.gate.name}: has no parameters, so nothing is trainable with frozen_adapter; use another "
            "gate (gate=query)"
        )
    return model, parameters


def _rehearsal(
    config: RunConfig,
    model: SiameseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    dist_context: DistributedContext,
    response_cache_dir: Path | None,
) -> tuple[Rehearsal | None, dict[str, Any]]:
    """Return the texts of the training steps (None without rehearsal), and statistics for `training.json`."""
    texts, statistics = rehearsal_examples(
        config, model, tokenizer, dist_context=dist_context, response_cache_dir=response_cache_dir
    )
    settings = config.rehearsal
    if settings.batch_size is None or not texts:
        return None, statistics
    return Rehearsal(
        texts=texts,
        loss=settings.loss,
        weight=settings.weight,
        batch_size=settings.batch_size,
        seed=config.seed,
        get_hidden_state_cache=_lazy_cache(config, model, texts, tokenizer.pad_token_id, dist_context, texts=True),
    ), statistics


def _checkpoint_manager(
    config: RunConfig, run: RunDir, engine: Engine, callbacks: TrainingCallbacks | None, *, resume_from: Path | None
) -> CheckpointManager:
    recipe = config.trainer
    return CheckpointManager(
        folder=run.checkpoints,
        identity=run_identity(config),
        engine=engine,
        callbacks=callbacks,
        save_minutes=recipe.save_minutes,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        metric_for_best_model=recipe.metric_for_best_model,
        min_target=recipe.min_target,
        resume_from=resume_from,
    )


def _at_save_step(
    config: RunConfig, run: RunDir, model: SiameseForCausalLM, watch: Watch | None, *, engine: Engine, last_step: int
) -> AtSaveStep:
    """Return a function that keeps the model for its evaluation, and returns the scores of the watched items."""
    # without a selection the last one is the trained model
    last_kept = last_step if config.trainer.metric_for_best_model is not None else last_step - 1

    def at_save_step(step: int) -> dict[str, float]:
        if config.evaluation.checkpoints and step <= last_kept:
            keep_checkpoint(run, step, model, engine=engine, dist_context=engine.dist_context)
        return watch() if watch is not None else {}

    return at_save_step


def _finish_run_dir(
    config: RunConfig, run: RunDir, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]
) -> None:
    """Write the tokenizer, the hashes of the model and training.json; delete the checkpoints."""
    if config.frozen_adapter is not None:
        # ZeRO stage 3 shards the frozen adapter like the backbone, so its files are copied
        frozen = RunDir(Path(config.frozen_adapter))
        verify_run_model(frozen)
        shutil.copytree(frozen.adapter, run.adapter, dirs_exist_ok=True)
    tokenizer.save_pretrained(run.model)
    model_hash = write_manifest(run.model)
    # training.json marks the model as complete, also after a power failure
    fsync_tree(run.model)
    hashes = {MODEL_HASH: model_hash, IDENTITY_HASH: hash_values(run_identity(config))}
    write_hashed_json(run.trained, record | hashes)
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _find_checkpoint(config: RunConfig, run: RunDir, dist_context: DistributedContext) -> Path | None:
    """Return the checkpoint to resume from, or None to start fresh (deletes stale checkpoints)."""

    def find() -> str | None:
        start = checkpoint_to_resume(config.resume, run.checkpoints, identity=run_identity(config))
        if start is None:
            for folder in (run.checkpoints, run.kept_checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
            return None
        # steps after this one are repeated and would collide with the existing checkpoints
        archive_later(start, run.checkpoints)
        return str(start)

    found = dist_context.run_on_main(find)
    return None if found is None else Path(found)


def _split_validation(
    config: RunConfig, examples: list[TokenizedExample]
) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
    """Split `trainer.validation_size` random examples from the training set.

    Raises:
        UserError: No training example would remain.
    """
    count = config.trainer.validation_size
    if not count:
        return examples, []
    if count >= len(examples):
        raise UserError(
            f"trainer.validation_size={count}: must be smaller than the number of training examples, {len(examples)}"
        )
    # epoch=-1 is not a training epoch, so the split shares no random order with any of them
    (order,) = training_order(len(examples), batch_size=len(examples), seed=config.seed, epoch=-1)
    held_out = set(order[:count])
    training = [example for index, example in enumerate(examples) if index not in held_out]
    return training, [examples[index] for index in sorted(held_out)]
