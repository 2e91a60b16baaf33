"""Stage three: what the run's arm answers, and what the original does; scored, as results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.config.identity import baseline_config, run_identity, training_chain
from imsm.config.schema import RunConfig
from imsm.evaluation.contamination import find_contamination
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.evaluator import EvalResult, evaluate
from imsm.evaluation.predictions import task_dir
from imsm.evaluation.result import build_result, write_result
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import all_training_examples
from imsm.utils.hashing import hash_file_cached, hash_json
from imsm.utils.run_dir import RunDir, open_run_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example
    from imsm.distributed.context import DistributedContext

GetModel = Callable[[], SiameseForCausalLM]
"""Gives the model; called only if something has to be generated."""


def evaluate_original(
    config: RunConfig,
    *,
    path: Path,
    response_cache_dir: Path,
    tests: dict[str, EvalSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: str,
    dist_context: DistributedContext,
) -> dict[str, Any]:
    """The original's result on these tasks; it answers once, every later run reuses that.

    Its `result.json` is written by its own run alone: another run may ask other tasks.
    """
    alone = baseline_config(config)
    dist_context.run_on_main(lambda: _open(path, alone))
    tasks = _judge_tasks(
        config,
        tests=tests,
        model=model,
        stream="original",
        tokenizer=tokenizer,
        fingerprint=model_hash(config, "original", weights=weights),
        folder=path,
        response_cache_dir=response_cache_dir,
        dist_context=dist_context,
    )
    result = build_result(
        name=path.name,
        method="original",
        identity=run_identity(alone),
        config=alone.to_dict(),
        fingerprints={"backbone": weights},
        trainable_parameters={"adapter": 0, "gate": 0},
        training=None,
        evaluation=tasks,
    )
    if not config.method.trainable and dist_context.is_main:
        write_result(path, result)
    return result


def evaluate_trained(
    config: RunConfig,
    *,
    run: RunDir,
    response_cache_dir: Path,
    tests: dict[str, EvalSet],
    model: GetModel,
    tokenizer: PreTrainedTokenizerBase,
    original: dict[str, Any],
    dist_context: DistributedContext,
) -> dict[str, Any]:
    """The trained arm's result; it keeps the original's scores on the same items beside its own."""
    digests = weight_hashes(run.model)
    training = json.loads(run.trained.read_text(encoding="utf-8"))
    inputs = json.loads(run.inputs.read_text(encoding="utf-8"))
    stream = config.method.stream
    tasks = _judge_tasks(
        config,
        tests=tests,
        model=model,
        stream=stream,
        tokenizer=tokenizer,
        fingerprint=model_hash(config, stream, weights=inputs["backbone"], digests=digests),
        folder=run.path,
        response_cache_dir=response_cache_dir,
        dist_context=dist_context,
    )
    result = build_result(
        name=run.path.name,
        method=config.method.name,
        identity=run_identity(config),
        config=config.to_dict(),
        fingerprints={**inputs, **dict(digests)},
        trainable_parameters=training["trainable_parameters"],
        training=training,
        evaluation={**tasks, "original": original["evaluation"]["tasks"]},
    )
    if dist_context.is_main:
        write_result(run.path, result)
    return result


def _judge_tasks(
    config: RunConfig,
    *,
    tests: dict[str, EvalSet],
    model: GetModel,
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    folder: Path,
    response_cache_dir: Path,
    dist_context: DistributedContext,
) -> dict[str, Any]:
    """One stream on every task, as `result.json` keeps it; a folder per task and test set."""
    learned_from = None if stream == "original" else all_training_examples(config)
    tasks: dict[str, Any] = {}
    for name, test in tests.items():
        judgement = evaluate(
            test,
            get_model=model,
            stream=stream,
            tokenizer=tokenizer,
            model_fingerprint=fingerprint,
            metrics=metrics_of(config, test),
            protocol=config.evaluation.protocol,
            batch_size=config.evaluation.batch_size,
            response_cache_dir=response_cache_dir,
            output_dir=task_dir(folder, task=name, test_set=test.fingerprint),
            label=f"{config.method.name if stream != 'original' else 'original'}: {name}",
            dist_context=dist_context,
        )
        tasks[name] = result_entry(config, name, test, judgement, learned_from=learned_from)
    return {"settings": config.evaluation.model_dump(), "tasks": tasks}


def result_entry(
    config: RunConfig, name: str, test: EvalSet, judgement: EvalResult, *, learned_from: Sequence[Example] | None
) -> dict[str, Any]:
    """A task's entry in `result.json`.

    ``learned_from``: what the arm that answered had learned from; None: nothing.
    """
    learned = learned_from is not None and name in learned_tasks(config)
    return {
        "role": "target" if name == config.data.name else "forgetting",
        "trained_on": learned,
        "test_set": test.fingerprint,
        "contamination": find_contamination(test.examples, learned_from or []),
        **asdict(judgement),
    }


def learned_tasks(config: RunConfig) -> list[str]:
    """The tasks from which a run's model learned: before it, its target, and what was replayed.

    Tests that a replay was kept apart from are not among them.
    """
    trainings = training_chain(run_identity(config))
    replays = [training["peft"].get("replay") for training in trainings]
    targets = [training["data"]["name"] for training in trainings]
    return [*targets, *(replay["task"] for replay in replays if replay)]


def metrics_of(config: RunConfig, test: EvalSet) -> dict[str, list[str]]:
    """The modules of a task's metrics by protocol."""
    named = {"strict": test.task.metrics, "paper_code": test.task.paper_code_metrics}
    return {
        protocol: [config.metrics.get(metric, metric) for metric in metrics]
        for protocol, metrics in named.items()
        if metrics
    }


def _open(path: Path, alone: RunConfig) -> None:
    open_run_dir(path, run_identity(alone))


def model_hash(config: RunConfig, stream: str, *, weights: str, digests: Sequence[Sequence[str]] = ()) -> str:
    """Identifies who answers: the backbone's weights, their precision, adapter and gate, stream."""
    made_of: list[Any] = [weights, config.backbone.dtype, stream]
    return hash_json([*made_of, digests] if digests else made_of)


def weight_hashes(folder: Path) -> list[list[str]]:
    """SHA-256 of the adapter's and the gate's files."""
    files = sorted(folder.rglob("*.safetensors"))
    return [[str(file.relative_to(folder)), hash_file_cached(file)] for file in files]
