"""One run from its configuration to its report card.

    test sets -> [training] -> the original's answers -> the run's own answers -> result, report

Everything that is finished is kept and reused: a second run of the same command prints its report.
"""

from __future__ import annotations

import errno
import gc
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from imsm.config.identity import baseline_config, run_identity, run_name
from imsm.config.schema import RunConfig
from imsm.data.chat_template import use_chat_template
from imsm.distributed.context import DistributedContext
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.backbones.loading import load_tokenizer
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import check_parent_data, eval_sets, training_fingerprint
from imsm.pipeline.engine import local_device
from imsm.pipeline.evaluate import GetModel, evaluate_original, evaluate_trained
from imsm.pipeline.tracking import RunLogger, open_tracker
from imsm.pipeline.train import finished_model, frozen_fingerprint, parent_hash, train_run
from imsm.reporting.report import write_report
from imsm.utils.errors import RunError, UserError
from imsm.utils.files import file_lock
from imsm.utils.run_dir import RunDir, check_input_hashes, open_run_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.evaluation.eval_set import EvalSet


def run_experiment(config: RunConfig, *, runs_root: Path, dist_context: DistributedContext | None = None) -> None:
    """Train (unless that is done), judge, and report one run.

    Args:
        config: the run's.
        runs_root: under which all runs lie.
        dist_context: this process and those beside it, which all carry the same run out; None: alone.

    Raises:
        UserError: the input does not fit; nothing was lost.
        RunError: training went wrong; the last good checkpoint is kept.
        KeyboardInterrupt: stopped by hand, after a checkpoint.
    """
    dist_context = dist_context or DistributedContext()
    path = Path(config.run_dir) if config.run_dir else runs_root / run_name(config)
    with ExitStack() as stack:
        dist_context.run_on_main(lambda: _claim_run_dir(config, path, stack))
        if dist_context.is_main:
            print(f"{path.name}  ({path})")
        transformers.utils.logging.disable_progress_bar()
        try:
            _run(config, run=RunDir(path), runs_root=runs_root, dist_context=dist_context)
        except Exception as error:
            if isinstance(error, UserError | RunError) or not _disk_is_full(error):
                raise
            raise UserError(
                f"{path}: could not be written ({error}); what was finished is kept. Free some "
                "space and give the same command again"
            ) from error
        except KeyboardInterrupt:
            if dist_context.is_main:
                print(
                    f"\nstopped; what is done is kept in {path}\ngive the same command again to go on", file=sys.stderr
                )
            raise


def _claim_run_dir(config: RunConfig, path: Path, stack: ExitStack) -> None:
    """Make the folder this run's own, for as long as ``stack`` lasts."""
    finished = RunDir(path).trained.is_file() or not config.method.trainable
    if config.mode == "evaluate" and not finished:
        raise UserError(f"mode=evaluate: {path} holds no finished training; give the same command with mode=run first")
    stack.enter_context(file_lock(path))
    open_run_dir(path, run_identity(config))


def _run(config: RunConfig, *, run: RunDir, runs_root: Path, dist_context: DistributedContext) -> None:
    device = local_device(config, dist_context)
    path, local = config.backbone.name_or_path, config.backbone.local_resolver
    revision = config.backbone.revision
    tokenizer = load_tokenizer(name_or_path=path, revision=revision, local_resolver=local)
    if config.data.chat_template:
        use_chat_template(tokenizer)
    tests = eval_sets(config, tokenizer)
    weights = backbone_fingerprint(name_or_path=path, revision=revision, local_resolver=local)
    before = None if config.previous_stage is None else runs_root / config.previous_stage.run
    if config.method.trainable:
        check_parent_data(config)
        began = {"backbone": weights, "data": training_fingerprint(config)}
        if before is not None:
            began["start"] = parent_hash(before)
        began |= frozen_fingerprint(config)
        dist_context.run_on_main(lambda: check_input_hashes(run, began))
    with _tracker(config, run, dist_context) as tracker:
        trained = None
        if config.method.trainable and not dist_context.run_on_main(run.trained.is_file):
            trained = train_run(
                config,
                run=run,
                before=before,
                tokenizer=tokenizer,
                log=tracker.log if tracker else _silent,
                device=device,
                dist_context=dist_context,
            )

        @cache
        def model() -> SiameseForCausalLM:
            if trained is not None:
                return trained
            gc.collect()  # what DeepSpeed trained on must go before the model comes again
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return finished_model(config, run, device=device)

        result = _judge(
            config,
            run=run,
            tests=tests,
            model=model,
            tokenizer=tokenizer,
            weights=weights,
            runs_root=runs_root,
            dist_context=dist_context,
        )
        if tracker:
            write_report(run.path, result, runs_root=runs_root)
            tracker.finish(result)
            tracker.attach(run.path)


def _judge(
    config: RunConfig,
    *,
    run: RunDir,
    tests: dict[str, EvalSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
    runs_root: Path,
    dist_context: DistributedContext,
) -> dict[str, Any]:
    """The run's result; it is the original's where nothing is trained."""
    place = _original_path(config, runs_root=runs_root)
    apart = config.method.trainable and dist_context.is_main
    with file_lock(place, wait=True) if apart else nullcontext():
        original = evaluate_original(
            config,
            path=place,
            response_cache_dir=runs_root / "response_cache",
            tests=tests,
            model=model,
            tokenizer=tokenizer,
            weights=weights,
            dist_context=dist_context,
        )
    if not config.method.trainable:
        return original
    return evaluate_trained(
        config,
        run=run,
        response_cache_dir=runs_root / "response_cache",
        tests=tests,
        model=model,
        tokenizer=tokenizer,
        original=original,
        dist_context=dist_context,
    )


def _tracker(
    config: RunConfig, run: RunDir, dist_context: DistributedContext
) -> AbstractContextManager[RunLogger | None]:
    """The run's tracker; one of several processes has it."""
    if not dist_context.is_main:
        return nullcontext()
    return open_tracker(run.path, config=config.to_dict(), **config.logger.model_dump())


def _silent(step: int, values: dict[str, float]) -> None:
    """The log of a process that is not the first one."""


def _disk_is_full(error: Exception) -> bool:
    """Whether a library says so: by an OSError, or (safetensors, tokenizers) in words alone."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = any(f"(os error {number})" in str(error) for number in full)
    return said or getattr(error, "errno", None) in full


def _original_path(config: RunConfig, *, runs_root: Path) -> Path:
    """Where the original's answers lie: its own run's folder."""
    if config.run_dir and not config.method.trainable:
        return Path(config.run_dir)
    return runs_root / run_name(baseline_config(config))
