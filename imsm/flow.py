"""One run from its configuration to its report card; here the configuration ends.

    test sets -> [training] -> the run's own answers -> the original's answers -> result, report

Everything that is finished is kept and reused: a second run of the same command prints its report.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from safetensors import SafetensorError

from imsm.adapters.adapter import Adapter
from imsm.assemble import assemble, count_trainable
from imsm.backbones.fingerprint import backbone_fingerprint, file_digest
from imsm.backbones.load import load_tokenizer
from imsm.builders import locate
from imsm.config import MethodConfig, RunConfig
from imsm.data.sources import Source, load_examples
from imsm.data.task import Task
from imsm.data.tokenise import tokenise_training
from imsm.errors import RunError, UserError
from imsm.evaluation.judge import TestSet, digest, judge, load_test_set
from imsm.identity import run_identity, run_name
from imsm.report.card import find_siblings, render_markdown, render_terminal
from imsm.report.result import build_result, write_result
from imsm.run_folder import RunFolder, locked, open_run
from imsm.siamese.model import SiameseForCausalLM
from imsm.tracking import Tracker, open_tracker
from imsm.training.checkpoint import remove_checkpoint
from imsm.training.local import LocalEngine, choose_device
from imsm.training.loop import Batching, Checkpointing, train
from imsm.training.optimizer import build_optimizer, build_schedule

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

GetModel = Callable[[], SiameseForCausalLM]


def carry_out(config: RunConfig, *, runs_root: Path) -> None:
    """Train (unless that is done), judge, and report one run.

    Raises:
        UserError: the input does not fit; nothing was lost.
        RunError: training went wrong; the last good checkpoint is kept.
        KeyboardInterrupt: stopped by hand, after a checkpoint.
    """
    path = Path(config.folder) if config.folder else runs_root / run_name(config)
    with locked(path):
        run = open_run(path, run_identity(config))
        print(f"{path.name}  ({path})")
        transformers.utils.logging.disable_progress_bar()
        try:
            tracker = open_tracker(path, config=config.to_dict(), **config.tracker.model_dump())
            with tracker:
                result = _carry_out(config, run=run, runs_root=runs_root, tracker=tracker)
                tracker.finish(result)
        except (OSError, SafetensorError) as error:
            if not _disk_is_full(error):
                raise
            raise RunError(
                f"{path}: could not be written ({error}); what was finished is kept. Free some "
                "space and give the same command again"
            ) from error
        except KeyboardInterrupt:
            print(
                f"\nstopped; what is done is kept in {path}\ngive the same command again to go on",
                file=sys.stderr,
            )
            raise


def _carry_out(
    config: RunConfig, *, run: RunFolder, runs_root: Path, tracker: Tracker
) -> dict[str, Any]:
    done = run.trained.is_file() or not config.method.trained
    if config.mode == "evaluate" and not done:
        raise UserError(
            f"mode=evaluate: {run.path} holds no finished training; give the same command with "
            "mode=run first"
        )
    device = choose_device(config.engine.device)
    source = {"path": config.backbone.path, "local": config.backbone.local}
    tokenizer = load_tokenizer(**source, revision=config.backbone.revision)
    tests = _test_sets(config, tokenizer)
    trained = None if done else _train(config, run, tokenizer, tracker, device)

    @cache
    def model() -> SiameseForCausalLM:
        return trained or _finished(config, run).to(device)

    weights = backbone_fingerprint(**source, revision=config.backbone.revision)
    path = original_path(config, runs_root=runs_root)
    with locked(path, wait=True) if config.method.trained else nullcontext():
        original = _judge_original(
            config, path=path, tests=tests, model=model, tokenizer=tokenizer, weights=weights
        )
    result = original
    if config.method.trained:
        result = _judge_arm(
            config, run=run, tests=tests, model=model, tokenizer=tokenizer, weights=weights
        )
    _report(run, result, original=original, runs_root=runs_root)
    return result


def _disk_is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or "I/O error" in str(error)


def original_of(config: RunConfig) -> RunConfig:
    """The same run with nothing trained."""
    method = MethodConfig(name="original", stream="original", trained=False)
    return config.model_copy(update={"method": method, "folder": None})


def original_path(config: RunConfig, *, runs_root: Path) -> Path:
    """Where the original's answers lie: its own run's folder."""
    if config.folder and not config.method.trained:
        return Path(config.folder)
    return runs_root / run_name(original_of(config))


# ------------------------------------------------------------------------- data


def _test_sets(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, TestSet]:
    """The tasks to be judged, by name."""
    tests = {}
    for name, task in config.tasks.items():
        own = name == config.data.name
        described = config.data if own else task
        source = (
            config.data.target_source() if own else config.data.forgetting_source(config.backbone)
        )
        tests[name] = load_test_set(
            Task(**described.task_arguments()),
            source=Source(**source.model_dump()),
            prompts=config.data.prompts,
            items=config.evaluation.items_of(name),
            tokenizer=tokenizer,
            closed_vocabulary=config.backbone.closed_vocabulary,
        )
        _warn(f"{name} (test)", tests[name].report.warning())
    return tests


def _warn(what: str, warning: str | None) -> None:
    if warning:
        print(f"warning: {what}: {warning}", file=sys.stderr)


# --------------------------------------------------------------------- training


def _train(
    config: RunConfig,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    tracker: Tracker,
    device: torch.device,
) -> SiameseForCausalLM:
    """Train adapter and gate, or go on training them; write the finished model."""
    task = Task(**config.data.task_arguments())
    examples = load_examples(
        task,
        "train",
        source=Source(**config.data.target_source().model_dump()),
        prompts=config.data.prompts,
        limit=config.data.train_limit,
    )
    items, report = tokenise_training(
        examples,
        tokenizer,
        max_prompt_tokens=task.max_prompt_tokens,
        max_answer_tokens=task.max_new_tokens,
        closed_vocabulary=config.backbone.closed_vocabulary,
    )
    _warn(f"{task.name} (train)", report.warning())
    if not items:
        raise UserError(f"data={task.name}: no training example is left; raise max_prompt_tokens")
    recipe = config.trainer
    batching = Batching(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        seed=config.seed,
    )
    steps = batching.steps(len(items))
    adapter: Adapter = locate(config.peft.target)(
        target_modules=config.peft.target_modules(config.backbone), **config.peft.arguments()
    )
    model = _new_model(config, adapter).to(device)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    parameters = count_trainable(model)
    print(
        f"trainable parameters: {sum(parameters.values()):,} "
        f"(adapter {parameters['adapter']:,}, gate {parameters['gate']:,})"
    )
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
    summary = train(
        model,
        items,
        engine=LocalEngine(
            optimizer=optimizer, schedule=schedule, clip_norm=recipe.clip_norm, device=device
        ),
        hooks=adapter.hooks(model.adapted, steps) if adapter.hooks else None,
        batching=batching,
        checkpointing=Checkpointing(folder=run.checkpoint, minutes=recipe.checkpoint_minutes),
        pad_id=tokenizer.pad_token_id,
        log=tracker.log,
    )
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    record = (
        summary.record()
        | asdict(report)
        | {
            "examples": len(examples),
            "data": digest([[e.id, e.prompt, list(e.golds)] for e in examples]),
            "trainable_parameters": parameters,
        }
    )
    run.trained.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    remove_checkpoint(run.checkpoint)
    return model


def _new_model(config: RunConfig, adapter: Adapter | None) -> SiameseForCausalLM:
    gate = None
    if config.method.stream == "interwoven":
        gate = {"_target_": config.gate.target, **config.gate.arguments()}
    return assemble(
        backbone=config.backbone.model_dump(
            include={"path", "revision", "dtype", "attn_implementation", "local"}
        ),
        adapter=adapter,
        gate=gate,
        pooling=config.gate.pooling,
        stream=config.method.stream,
        seed=config.seed,
    )


def _finished(config: RunConfig, run: RunFolder) -> SiameseForCausalLM:
    """The model that training left; the backbone alone for the original."""
    if config.method.trained:
        return SiameseForCausalLM.from_pretrained(run.path)
    return _new_model(config, None)


def _trainable_digests(folder: Path) -> list[list[str]]:
    """SHA-256 of the adapter's and the gate's files."""
    files = sorted(folder.rglob("*.safetensors"))
    return [[str(file.relative_to(folder)), file_digest(file)] for file in files]


# ---------------------------------------------------------------------- judging


def _judge_original(
    config: RunConfig,
    *,
    path: Path,
    tests: dict[str, TestSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
) -> dict[str, Any]:
    """The original's result on these tasks; it answers once, every later run reuses that."""
    alone = original_of(config)
    open_run(path, run_identity(alone))
    tasks = _judge_tasks(
        config,
        tests=tests,
        model=model,
        stream="original",
        tokenizer=tokenizer,
        fingerprint=digest([weights, config.backbone.dtype, "original"]),
        folder=path / "evaluation",
    )
    result = build_result(
        name=path.name,
        method="original",
        config=alone.to_dict(),
        fingerprints={"backbone": weights},
        trainable_parameters={"adapter": 0, "gate": 0},
        training=None,
        evaluation=tasks,
    )
    write_result(path, result)
    return result


def _judge_arm(
    config: RunConfig,
    *,
    run: RunFolder,
    tests: dict[str, TestSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
) -> dict[str, Any]:
    """The trained arm's result."""
    digests = _trainable_digests(run.model)
    training = json.loads(run.trained.read_text(encoding="utf-8"))
    tasks = _judge_tasks(
        config,
        tests=tests,
        model=model,
        stream=config.method.stream,
        tokenizer=tokenizer,
        fingerprint=digest([weights, config.backbone.dtype, config.method.stream, digests]),
        folder=run.evaluation,
    )
    result = build_result(
        name=run.path.name,
        method=config.method.name,
        config=config.to_dict(),
        fingerprints={"backbone": weights, "data": training["data"], **dict(digests)},
        trainable_parameters=training["trainable_parameters"],
        training=training,
        evaluation=tasks,
    )
    write_result(run.path, result)
    return result


def _judge_tasks(
    config: RunConfig,
    *,
    tests: dict[str, TestSet],
    model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    folder: Path,
) -> dict[str, Any]:
    """One stream on every task, as `result.json` keeps it; a folder per task and test set."""
    tasks: dict[str, Any] = {}
    for name, test in tests.items():
        judgement = judge(
            test,
            model=model,
            stream=stream,
            tokenizer=tokenizer,
            model_fingerprint=fingerprint,
            metrics=[config.metrics.get(metric, metric) for metric in test.task.metrics],
            batch_size=config.evaluation.batch_size,
            folder=folder / f"{name}-{test.fingerprint[:8]}",
            label=f"{config.method.name if stream != 'original' else 'original'}: {name}",
        )
        is_target = name == config.data.name
        tasks[name] = {
            "role": "target" if is_target else "forgetting",
            "trained_on": is_target and stream != "original",
            "test_set": test.fingerprint,
            **asdict(judgement),
        }
    return {"settings": config.evaluation.model_dump(), "tasks": tasks}


def _report(
    run: RunFolder, result: dict[str, Any], *, original: dict[str, Any], runs_root: Path
) -> None:
    """This arm, the original, and finished runs that differ in nothing but the method."""
    siblings = find_siblings(runs_root, result)
    others = [other for other in siblings if other["method"] not in ("original", result["method"])]
    shown = [original, *others] + ([result] if result["method"] != "original" else [])
    (run.path / "report.md").write_text(render_markdown(shown), encoding="utf-8")
    render_terminal(shown)
    print(f"report: {run.path / 'report.md'}")
