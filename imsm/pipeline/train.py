"""Stage two: train adapter and gate, or go on training them, and write the finished model."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imsm.config.identity import run_identity
from imsm.config.schema import RunConfig
from imsm.data.batching import training_order
from imsm.models.adapters.base import AdapterSpec
from imsm.models.builder import build_model, count_trainable
from imsm.models.serialization import load_weights_into
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import tokenized_training_set
from imsm.pipeline.engine import build_engine, micro_batch_size
from imsm.pipeline.hidden_state_cache import check_cache_fits, open_hidden_state_cache
from imsm.pipeline.model import build_adapter, build_kl_regularizer, format_trainable, model_kwargs
from imsm.training.checkpoint import archive_later
from imsm.training.checkpoint_manager import CheckpointManager, checkpoint_to_resume
from imsm.training.trainer import BatchPlan, Log, train
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_file_cached, hash_text
from imsm.utils.run_dir import RunDir

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from imsm.data.tokenization import TokenizedExample
    from imsm.distributed.context import DistributedContext
    from imsm.models.siamese.model import SiameseForCausalLM


def check_resumable_method(config: RunConfig) -> None:
    """Refuse a method whose saved model cannot be trained further, before a first stage is trained.

    Raises:
        UserError: it is such a method.
    """
    method = build_adapter(config).config
    kind = getattr(getattr(method, "peft_type", None), "value", None)
    if kind == "P_TUNING" or getattr(method, "prefix_projection", False):
        raise UserError(
            f"peft={config.peft.name}: learns by an encoder that a finished model does not keep, "
            "so no stage can go on from it; choose peft=prompt_tuning, prefix_tuning without a "
            "projection, or lora"
        )


def parent_hash(before: Path) -> str:
    """Identifies the values of adapter and gate that a finished run left.

    Raises:
        UserError: the run is not finished.
    """
    run = RunDir(before)
    if not run.trained.is_file():
        raise UserError(
            f"{before}: is the stage before and holds no finished training; give the whole "
            "sequence, whose stages are trained in order"
        )
    return _values_fingerprint(run.model)


def frozen_fingerprint(config: RunConfig) -> dict[str, str]:
    """Identifies the values of the adapter that a run takes as it is; empty if it takes none."""
    if config.frozen_adapter is None:
        return {}
    return {"frozen adapter": _values_fingerprint(RunDir(Path(config.frozen_adapter)).adapter)}


def load_parent_weights(model: SiameseForCausalLM, before: Path) -> None:
    """Give ``model``'s adapter and gate the values that the run in ``before`` left."""
    load_weights_into(model, RunDir(before).model)


def _values_fingerprint(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    digests = [f"{file.relative_to(folder)} {hash_file_cached(file)}\n" for file in files]
    return hash_text("".join(digests))


def train_run(
    config: RunConfig,
    *,
    run: RunDir,
    before: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    log: Log,
    device: torch.device,
    dist_context: DistributedContext,
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
        micro_batch_size=micro_batch_size(config, processes=dist_context.size),
        seed=config.seed,
        group_by_length=recipe.group_by_length,
    )
    steps = batching.steps(len(items))
    start = _start(config, run, dist_context)
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
    if dist_context.is_main:
        print(format_trainable(parameters))
    pad_id = tokenizer.pad_token_id
    dist_context.run_on_main(lambda: check_cache_fits(config, model, every, pad_id=pad_id))
    bank = cache(lambda: open_hidden_state_cache(config, model, every, pad_id=pad_id, dist_context=dist_context))
    if dist_context.store is not None:
        bank()  # before DeepSpeed takes the model over
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    hooks = None
    if adapter.callbacks and config.frozen_adapter is None:
        hooks = adapter.callbacks(cast("PeftModel", model.adapted), steps)
    with build_engine(config, model, steps=steps, device=device, dist_context=dist_context) as engine:
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
            model.save_pretrained(run.model, is_main_process=dist_context.is_main)
    record = summary.record() | examples | best | {"trainable_parameters": parameters}
    record |= {"engine": config.engine.name, "processes": dist_context.size}
    dist_context.run_on_main(lambda: _finish(config, run, tokenizer, record))
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_disable()
    return model if dist_context.store is None else None


def _finish(config: RunConfig, run: RunDir, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]) -> None:
    """What stands beside the finished model; its checkpoints have had their time.

    A frozen adapter is kept file by file: ZeRO's third stage has it shared out, like the backbone.
    """
    if config.frozen_adapter is not None:
        finished = RunDir(Path(config.frozen_adapter)).adapter
        shutil.copytree(finished, run.adapter, dirs_exist_ok=True)
    tokenizer.save_pretrained(run.model)
    write_atomic(run.trained, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _start(config: RunConfig, run: RunDir, dist_context: DistributedContext) -> Path | None:
    """Where the training goes on; None: it begins, and what was kept of another start goes."""
    identity = run_identity(config)

    def find() -> str | None:
        start = checkpoint_to_resume(config.resume, run.checkpoints, identity=identity)
        if start is None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            return None
        archive_later(start, run.checkpoints)
        return str(start)

    found = dist_context.run_on_main(find)
    return None if found is None else Path(found)


def _held_out(
    config: RunConfig, items: list[TokenizedExample]
) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
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


def new_model(config: RunConfig, adapter: AdapterSpec | None, *, device: torch.device) -> SiameseForCausalLM:
    """The run's model as training begins; without an adapter the original alone."""
    chosen: AdapterSpec | Path | None = adapter
    if adapter is not None and config.frozen_adapter is not None:
        chosen = RunDir(Path(config.frozen_adapter)).adapter
    return build_model(adapter=chosen, device=device, **model_kwargs(config))


def finished_model(config: RunConfig, run: RunDir, *, device: torch.device) -> SiameseForCausalLM:
    """The model that training left; the backbone alone for the original."""
    if config.method.trainable:
        return SiameseForCausalLM.from_pretrained(run.path, device=device)
    return new_model(config, None, device=device)
