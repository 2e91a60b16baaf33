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

from imsm.backbones.fingerprint import backbone_fingerprint
from imsm.backbones.load import load_tokenizer
from imsm.config import RunConfig
from imsm.data.chat import adopt_chat_template
from imsm.errors import RunError, UserError
from imsm.identity import original_of, run_identity, run_name
from imsm.processes.world import World
from imsm.report.leave import leave_report
from imsm.run_folder import RunFolder, check_inputs, locked, open_run
from imsm.siamese.model import SiameseForCausalLM
from imsm.stages.data import check_learned, test_sets, training_fingerprint
from imsm.stages.engine import device_of
from imsm.stages.going_on import frozen_fingerprint, start_fingerprint
from imsm.stages.judging import GetModel, judge_arm, judge_original
from imsm.stages.training import finished_model, train_run
from imsm.tracking import Tracker, open_tracker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.evaluation.test_set import TestSet


def carry_out(config: RunConfig, *, runs_root: Path, world: World | None = None) -> None:
    """Train (unless that is done), judge, and report one run.

    Args:
        config: the run's.
        runs_root: under which all runs lie.
        world: this process and those beside it, which all carry the same run out; None: alone.

    Raises:
        UserError: the input does not fit; nothing was lost.
        RunError: training went wrong; the last good checkpoint is kept.
        KeyboardInterrupt: stopped by hand, after a checkpoint.
    """
    world = world or World()
    path = Path(config.folder) if config.folder else runs_root / run_name(config)
    with ExitStack() as stack:
        world.first(lambda: _take(config, path, stack))
        if world.leads:
            print(f"{path.name}  ({path})")
        transformers.utils.logging.disable_progress_bar()
        try:
            _carry_out(config, run=RunFolder(path), runs_root=runs_root, world=world)
        except Exception as error:
            if isinstance(error, UserError | RunError) or not _disk_is_full(error):
                raise
            raise UserError(
                f"{path}: could not be written ({error}); what was finished is kept. Free some "
                "space and give the same command again"
            ) from error
        except KeyboardInterrupt:
            if world.leads:
                print(
                    f"\nstopped; what is done is kept in {path}\n"
                    "give the same command again to go on",
                    file=sys.stderr,
                )
            raise


def _take(config: RunConfig, path: Path, stack: ExitStack) -> None:
    """Make the folder this run's own, for as long as ``stack`` lasts."""
    finished = RunFolder(path).trained.is_file() or not config.method.trained
    if config.mode == "evaluate" and not finished:
        raise UserError(
            f"mode=evaluate: {path} holds no finished training; give the same command with "
            "mode=run first"
        )
    stack.enter_context(locked(path))
    open_run(path, run_identity(config))


def _carry_out(config: RunConfig, *, run: RunFolder, runs_root: Path, world: World) -> None:
    device = device_of(config, world)
    path, local = config.backbone.path, config.backbone.local
    revision = config.backbone.revision
    tokenizer = load_tokenizer(path=path, revision=revision, local=local)
    if config.data.chat_template:
        adopt_chat_template(tokenizer)
    tests = test_sets(config, tokenizer)
    weights = backbone_fingerprint(path=path, revision=revision, local=local)
    before = None if config.after is None else runs_root / config.after.run
    if config.method.trained:
        check_learned(config)
        began = {"backbone": weights, "data": training_fingerprint(config)}
        if before is not None:
            began["start"] = start_fingerprint(before)
        began |= frozen_fingerprint(config)
        world.first(lambda: check_inputs(run, began))
    with _tracker(config, run, world) as tracker:
        trained = None
        if config.method.trained and not world.first(run.trained.is_file):
            trained = train_run(
                config,
                run=run,
                before=before,
                tokenizer=tokenizer,
                log=tracker.log if tracker else _silent,
                device=device,
                world=world,
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
            world=world,
        )
        if tracker:
            leave_report(run.path, result, runs_root=runs_root)
            tracker.finish(result)
            tracker.attach(run.path)


def _judge(
    config: RunConfig,
    *,
    run: RunFolder,
    tests: dict[str, TestSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
    runs_root: Path,
    world: World,
) -> dict[str, Any]:
    """The run's result; it is the original's where nothing is trained."""
    place = _original_path(config, runs_root=runs_root)
    apart = config.method.trained and world.leads
    with locked(place, wait=True) if apart else nullcontext():
        original = judge_original(
            config,
            path=place,
            ledgers=runs_root / "ledger",
            tests=tests,
            model=model,
            tokenizer=tokenizer,
            weights=weights,
            world=world,
        )
    if not config.method.trained:
        return original
    return judge_arm(
        config,
        run=run,
        ledgers=runs_root / "ledger",
        tests=tests,
        model=model,
        tokenizer=tokenizer,
        original=original,
        world=world,
    )


def _tracker(
    config: RunConfig, run: RunFolder, world: World
) -> AbstractContextManager[Tracker | None]:
    """The run's tracker; one of several processes has it."""
    if not world.leads:
        return nullcontext()
    return open_tracker(run.path, config=config.to_dict(), **config.tracker.model_dump())


def _silent(step: int, values: dict[str, float]) -> None:
    """The log of a process that is not the first one."""


def _disk_is_full(error: Exception) -> bool:
    """Whether a library says so: by an OSError, or (safetensors, tokenizers) in words alone."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = any(f"(os error {number})" in str(error) for number in full)
    return said or getattr(error, "errno", None) in full


def _original_path(config: RunConfig, *, runs_root: Path) -> Path:
    """Where the original's answers lie: its own run's folder."""
    if config.folder and not config.method.trained:
        return Path(config.folder)
    return runs_root / run_name(original_of(config))
