"""One run, from its configuration to its report.

    evaluation sets -> training -> evaluate the original -> evaluate the trained model -> report

Finished steps are saved and reused, so running a finished command again only prints its report.
"""

import errno
import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from imsm.config.identity import baseline_config, run_identity
from imsm.config.schema import RunConfig
from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.result import FILE as RESULT
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import check_parent_data, load_eval_sets, load_run_tokenizer, training_fingerprint
from imsm.pipeline.engine import local_device
from imsm.pipeline.evaluate import EvaluationInputs, evaluate_run
from imsm.pipeline.model import frozen_adapter_hash, load_run_model, lock_step, route_share
from imsm.pipeline.plan.fit import check_fits
from imsm.pipeline.run_status import run_dir_of
from imsm.pipeline.tracking import RunLogger, open_logger
from imsm.pipeline.train import parent_hash, prepare_training, save_trained
from imsm.training.determinism import set_deterministic_environment
from imsm.training.trainer import train
from imsm.utils import stop_signals
from imsm.utils.errors import RunError, UserError, first_line
from imsm.utils.files import file_lock
from imsm.utils.leftovers import remove_run_leftovers, remove_temporaries
from imsm.utils.paths import cache_folder
from imsm.utils.run_dir import RunDir, check_input_hashes, open_run_dir


def run_experiment(
    config: RunConfig, *, runs_root: Path, dist_context: DistributedContext | None = None, command: str | None = None
) -> None:
    """Train (unless finished), evaluate and report one run.

    ``config`` has no task sequence; without ``dist_context`` this process executes the run alone. ``command`` is
    recorded with the training.

    Raises:
        UserError: The input is invalid; nothing is lost.
        RunError: Training failed; the last good checkpoint is kept.
        KeyboardInterrupt: Interrupted, after saving a checkpoint.
    """
    dist_context = dist_context or DistributedContext()
    run = RunDir(run_dir_of(config, runs_root=runs_root))
    if config.trainer.deterministic:
        set_deterministic_environment()
    with ExitStack() as stack:
        # locked first: every later step may write to the folder
        dist_context.run_on_main(lambda: _lock_run_dir(config, run, stack))
        stack.enter_context(stop_signals.keeping(f"finished steps are kept in {run.path}"))
        stack.enter_context(_failure_messages(run))
        transformers.utils.logging.disable_progress_bar()
        parent = None if config.previous_stage is None else runs_root / config.previous_stage.run
        inputs = _load_inputs(config, run, parent, runs_root=runs_root, dist_context=dist_context)
        logger = _open_logger(config, run, stack) if dist_context.is_main else None
        if config.method.trainable and not dist_context.run_on_main(lambda: run.is_trained):
            cache_dir = runs_root / "response_cache"
            prepared = prepare_training(
                config, run, parent, inputs.tokenizer, inputs.device, dist_context, response_cache_dir=cache_dir
            )
            with prepared as setup:
                summary = train(
                    setup.model,
                    setup.examples,
                    engine=setup.engine,
                    callbacks=setup.callbacks,
                    batch_plan=setup.batch_plan,
                    checkpoint_manager=setup.checkpoint_manager,
                    pad_id=setup.tokenizer.pad_token_id,
                    log=logger.log if logger else _ignore_metrics,
                    validation_examples=setup.validation,
                    get_hidden_state_cache=setup.get_hidden_state_cache,
                    rehearsal=setup.rehearsal,
                    route_share=route_share(config),
                    at_save_step=setup.at_save_step,
                    deterministic=config.trainer.deterministic,
                )
                save_trained(config, setup, summary, run=run, dist_context=dist_context, command=command)
            # DeepSpeed has destroyed the model
            if dist_context.store is None or config.engine.fsdp2:
                model = setup.model
                inputs = replace(inputs, get_model=lambda: model)
            del prepared, setup  # frees the model that DeepSpeed partitioned, before evaluation loads it again
        if config.engine.fsdp2 and dist_context.store is not None:
            _join_sharded_evaluation(config, inputs)
        result = evaluate_run(config, inputs, run=run)
        if logger:
            _report(run, result, logger, runs_root=runs_root)


def _load_inputs(
    config: RunConfig, run: RunDir, parent: Path | None, *, runs_root: Path, dist_context: DistributedContext
) -> EvaluationInputs:
    """Load the tokenizer and the evaluation sets, and check them, the machine and the run's inputs before training."""
    device = local_device(config, dist_context)
    tokenizer = load_run_tokenizer(config)
    eval_sets = load_eval_sets(config, tokenizer)
    _check_fits(config, run, eval_sets, dist_context)
    hashes = _input_hashes(config, parent=parent)
    if config.method.trainable:
        # a finished or interrupted training with other inputs must not be mixed with this one
        dist_context.run_on_main(lambda: check_input_hashes(run, hashes))
    return EvaluationInputs(
        eval_sets=eval_sets,
        get_model=_model_loader(config, run, device=device),
        tokenizer=tokenizer,
        backbone_hash=hashes["backbone"],
        device=device,
        runs_root=runs_root,
        dist_context=dist_context,
    )


def _join_sharded_evaluation(config: RunConfig, inputs: EvaluationInputs) -> None:
    """Prepare the processes for running different numbers of passes of one sharded model."""
    minutes = config.engine.collective_timeout_minutes
    init_process_group(inputs.dist_context, device=inputs.device, timeout_minutes=minutes)
    inputs.dist_context.lock_step = partial(lock_step, inputs.get_model)


def _check_fits(
    config: RunConfig, run: RunDir, eval_sets: dict[str, EvalSet], dist_context: DistributedContext
) -> None:
    """Compare the run with the machine's memory, unless it fitted before."""
    if dist_context.run_on_main((run.path / RESULT).is_file):
        return
    if config.is_imported:
        config = baseline_config(config)  # nothing is trained
    longest = max(len(prompt.prompt_ids) for each in eval_sets.values() for prompt in each.prompts)
    processes = None if dist_context.store is None else dist_context.world_size
    dist_context.run_on_main(lambda: check_fits(config, prompt_tokens=longest, processes=processes))


def _report(run: RunDir, result: dict[str, Any], logger: RunLogger, *, runs_root: Path) -> None:
    """Write and log the report; the run is finished, so an error is only a warning."""
    from imsm.reporting.report import write_report  # matplotlib writes its font cache when imported

    steps = (
        ("report", lambda: write_report(run.path, result, runs_root=runs_root)),
        ("scores in log.jsonl", lambda: logger.finish(result)),
    )
    for name, write in steps:
        try:
            write()
        except Exception as error:
            kind = "" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: "
            print(
                f"imsm: warning: the run is finished, but its {name} could not be written ({kind}{first_line(error)});"
                f" write the report again with: imsm report {shlex.quote(str(run.path))}",
                file=sys.stderr,
            )
    logger.log_report(run.path)


def _lock_run_dir(config: RunConfig, run: RunDir, stack: ExitStack) -> None:
    """Open and lock the run folder until ``stack`` is closed."""
    if config.mode == "evaluate" and config.method.trainable and not run.is_trained:
        raise UserError(
            f"mode=evaluate: training of {run.path} is not finished ({run.trained.name} is missing); run the same "
            "command with mode=run"
        )
    stack.enter_context(file_lock(run.path))
    open_run_dir(run.path, run_identity(config))
    remove_run_leftovers(run)
    remove_temporaries(cache_folder())
    print(f"{run.path.name}  ({run.path})")
    if run.is_trained and not os.path.lexists(run.model):
        _forget_training(config, run)
    if config.method.trainable and not run.is_trained and (run.path / RESULT).exists():
        print(f"warning: {run.trained} is missing; training the model again", file=sys.stderr)


def _forget_training(config: RunConfig, run: RunDir) -> None:
    """Mark a training as unfinished, because its model was removed."""
    if config.mode == "evaluate":
        raise UserError(f"mode=evaluate: {run.model} is missing; run the same command with mode=run to train it again")
    print(f"warning: {run.model} is missing", file=sys.stderr)
    run.trained.unlink()


@contextmanager
def _failure_messages(run: RunDir) -> Iterator[None]:
    """Turn a full disk into a UserError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or not _is_disk_full(error):
            raise
        raise UserError(
            f"{run.path}: cannot be written ({error}); finished steps are kept. Free some space and run the same "
            "command again"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and tokenizers raise their own errors, with the number in the message only
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def _input_hashes(config: RunConfig, *, parent: Path | None) -> dict[str, str]:
    """Return the hashes of everything that training starts from, by name."""
    backbone = config.backbone
    hashes = {
        "backbone": backbone_fingerprint(
            name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
        )
    }
    if not config.method.trainable or config.is_imported:
        return hashes
    check_parent_data(config)
    hashes["data"] = training_fingerprint(config)
    if parent is not None:
        hashes["start"] = parent_hash(parent)
    if (frozen := frozen_adapter_hash(config)) is not None:
        hashes["frozen adapter"] = frozen
    return hashes


def _open_logger(config: RunConfig, run: RunDir, stack: ExitStack) -> RunLogger:
    """Return the logger, which ``stack`` closes; a stop signal closes it too."""
    logger = stack.enter_context(open_logger(run.path, config=config.to_dict(), settings=config.logger))
    stack.enter_context(stop_signals.on_stop(partial(logger.__exit__, KeyboardInterrupt, None, None)))
    return logger


def _ignore_metrics(step: int, values: dict[str, float]) -> None:
    """Discard training metrics: only rank 0 logs them."""


def _model_loader(config: RunConfig, run: RunDir, *, device: torch.device) -> Callable[[], SiameseForCausalLM]:
    """Return a function that loads the model once."""

    @cache
    def load() -> SiameseForCausalLM:
        # the partitioned model may be part of a reference cycle; empty_cache frees only unreferenced blocks
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return load_run_model(config, run, device=device)

    return load
