"""Evaluate the original and the trained model, and build the run's result."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from imsm.config.identity import baseline_config, replay_identity, run_identity, run_name, training_chain
from imsm.config.schema import RunConfig
from imsm.data.example import Example
from imsm.distributed.context import DistributedContext
from imsm.evaluation.contamination import find_contamination
from imsm.evaluation.engine_responses import agreement, fill_responses
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.evaluator import EvalResult, evaluate
from imsm.evaluation.generation import eos_token_ids
from imsm.evaluation.predictions import task_dir
from imsm.evaluation.response_cache import ResponseCache
from imsm.evaluation.result import build_result, write_result
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import all_training_examples
from imsm.pipeline.kept_checkpoints import kept_checkpoints
from imsm.pipeline.model import inference_settings, model_hash
from imsm.pipeline.vllm_backend import SETTINGS as ENGINE_SETTINGS
from imsm.pipeline.vllm_backend import vllm_generator
from imsm.utils.files import file_lock
from imsm.utils.leftovers import remove_run_leftovers
from imsm.utils.machine import describe_machine
from imsm.utils.manifest import verify_run_model
from imsm.utils.run_dir import RunDir, open_run_dir, read_input_hashes, read_training


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What the evaluation of the original and of the trained model share."""

    eval_sets: dict[str, EvalSet]  # evaluation set of each task
    get_model: Callable[[], SiameseForCausalLM]  # loads the model; called only if a response is not cached
    tokenizer: PreTrainedTokenizerBase  # tokenizer of the backbone
    backbone_hash: str  # hash of the backbone's files
    device: torch.device  # device of the model
    runs_root: Path  # parent folder of all runs and of the response cache
    dist_context: DistributedContext  # processes of the run


@dataclass(frozen=True)
class _Fingerprints:
    """Hashes of a model with the engine that generates its responses, and with transformers."""

    responses: str
    transformers: str


def evaluate_run(config: RunConfig, inputs: EvaluationInputs, *, run: RunDir) -> dict[str, Any]:
    """Evaluate the original, then the trained model if there is one; write and return the run's result."""
    original = evaluate_original(config, inputs)
    return evaluate_trained(config, inputs, run=run, original=original) if config.method.trainable else original


def evaluate_original(config: RunConfig, inputs: EvaluationInputs) -> dict[str, Any]:
    """Return the original model's result; its responses are shared by all runs.

    Only the original's own run writes `result.json`, because other runs may evaluate other tasks.
    """
    baseline = baseline_config(config)
    is_own_run = not config.method.trainable
    folder = inputs.runs_root / run_name(baseline)
    if is_own_run and config.run_dir:
        folder = Path(config.run_dir)
    is_main = inputs.dist_context.is_main
    settings = _inference_settings(config, inputs)
    fingerprints = _fingerprints(config, settings, partial(model_hash, "original", backbone_hash=inputs.backbone_hash))
    # runs that share the folder of the original wait for each other; its own run holds the lock already
    with nullcontext() if is_own_run or not is_main else file_lock(folder, wait=True):
        inputs.dist_context.run_on_main(lambda: _open_original(folder, baseline))
        evaluation = _evaluate_tasks(config, inputs, stream="original", fingerprints=fingerprints, folder=folder)
        result = build_result(
            name=folder.name,
            method="original",
            identity=run_identity(baseline),
            config=baseline.to_dict(),
            fingerprints={"backbone": inputs.backbone_hash, **settings, "responses": fingerprints.responses},
            machine=describe_machine(inputs.device),
            trainable_parameters={"adapter": 0, "gate": 0},
            training=None,
            evaluation=evaluation,
        )
        if is_own_run and is_main:
            write_result(folder, result)
    return result


def _open_original(folder: Path, config: RunConfig) -> None:
    remove_run_leftovers(open_run_dir(folder, run_identity(config)))


def evaluate_trained(
    config: RunConfig, inputs: EvaluationInputs, *, run: RunDir, original: dict[str, Any]
) -> dict[str, Any]:
    """Write and return the trained model's result, with the original's scores on the same examples.

    Raises:
        UserError: A file of the run changed since its training.
    """
    files = verify_run_model(run)
    training, input_hashes = read_training(run), read_input_hashes(run)
    stream, settings = config.method.stream, _inference_settings(config, inputs)
    hash_model = partial(model_hash, stream, backbone_hash=input_hashes["backbone"], files=files)
    fingerprints = _fingerprints(config, settings, hash_model)
    evaluation = _evaluate_tasks(config, inputs, stream=stream, fingerprints=fingerprints, folder=run.path)
    if config.evaluation.checkpoints and not config.is_imported:
        training |= {"path": _evaluate_path(config, inputs, run=run, settings=settings)}
    result = build_result(
        name=run.path.name,
        method=config.method.name,
        identity=run_identity(config),
        config=config.to_dict(),
        fingerprints={**input_hashes, **files, **settings, "responses": fingerprints.responses},
        machine=describe_machine(inputs.device),
        trainable_parameters=training["trainable_parameters"],
        training=None if config.is_imported else training,
        # copied into the result, so that reports never combine scores of two different test sets
        evaluation={**evaluation, "original": original["evaluation"]["tasks"]},
    )
    if inputs.dist_context.is_main:
        write_result(run.path, result)
    return result


def _evaluate_path(
    config: RunConfig, inputs: EvaluationInputs, *, run: RunDir, settings: dict[str, str]
) -> list[dict[str, Any]]:
    """Evaluate the kept checkpoints; return `training.path` of `result.json`. The model has other weights afterwards.

    Each entry has the step, and by task what `evaluation.tasks` has, without contamination, which is the trained
    model's.
    """
    path = []
    for step, kept, files in kept_checkpoints(run):
        stream, weights = config.method.stream, kept.model
        fingerprint = model_hash(stream, backbone_hash=inputs.backbone_hash, settings=settings, files=files)
        loaded = replace(inputs, get_model=partial(_load_weights, inputs.get_model, weights))
        label = f"step {step}"
        tasks = {
            name: {
                "role": "target" if name == config.target else "forgetting",
                "test_set": eval_set.fingerprint,
                **asdict(
                    _evaluate_task(
                        config, loaded, name, stream=stream, fingerprint=fingerprint, folder=kept.path, label=label
                    )
                ),
            }
            for name, eval_set in inputs.eval_sets.items()
        }
        path.append({"step": step, "tasks": tasks})
    if not path and inputs.dist_context.is_main:
        print(
            f"warning: evaluation.checkpoints=true: {run.path} has no checkpoints, because they are kept during the "
            "training, at every trainer.save_steps before the last step; set it when the training starts",
            file=sys.stderr,
        )
    return path


def _load_weights(get_model: Callable[[], SiameseForCausalLM], folder: Path) -> SiameseForCausalLM:
    model = get_model()
    model.load_weights(folder)
    return model


def _inference_settings(config: RunConfig, inputs: EvaluationInputs) -> dict[str, str]:
    # of rank 0 for all: processes with other keys would wait for each other forever
    found: dict[str, str] = inputs.dist_context.run_on_main(lambda: inference_settings(config, device=inputs.device))
    return found


def _fingerprints(config: RunConfig, settings: dict[str, str], hash_model: Callable[..., str]) -> _Fingerprints:
    transformers = hash_model(settings=settings)
    if config.evaluation.backend == "transformers":
        return _Fingerprints(transformers, transformers)
    return _Fingerprints(hash_model(settings={**settings, **ENGINE_SETTINGS}), transformers)


def _evaluate_tasks(
    config: RunConfig, inputs: EvaluationInputs, *, stream: str, fingerprints: _Fingerprints, folder: Path
) -> dict[str, Any]:
    """Evaluate one stream on every task; return the evaluation section of `result.json`."""
    fingerprint = fingerprints.responses
    evaluation: dict[str, Any] = {"settings": config.evaluation.model_dump()}
    if config.evaluation.backend == "vllm":
        evaluation["backend"] = inputs.dist_context.run_on_main(
            lambda: _answer_with_vllm(config, inputs, stream=stream, fingerprints=fingerprints, folder=folder)
        )
    # the original was trained on none of these examples, so it has no contamination to report
    trained_on = None if stream == "original" else all_training_examples(config)
    label = config.method.name if stream != "original" else "original"
    options: dict[str, Any] = {"stream": stream, "fingerprint": fingerprint, "folder": folder, "label": label}
    tasks: dict[str, Any] = {}
    for name, eval_set in inputs.eval_sets.items():
        evaluated = _evaluate_task(config, inputs, name, **options)
        tasks[name] = result_entry(config, name, eval_set, evaluated, trained_on=trained_on)
    return {**evaluation, "tasks": tasks}


def _answer_with_vllm(
    config: RunConfig, inputs: EvaluationInputs, *, stream: str, fingerprints: _Fingerprints, folder: Path
) -> dict[str, Any]:
    """Fill the response cache with vLLM's answers; return {name, agreement}, the latter by task.

    A task without cached answers of transformers has no agreement.
    """
    caches = [
        ResponseCache(inputs.runs_root / "response_cache", fingerprint=fingerprint)
        for fingerprint in (fingerprints.responses, fingerprints.transformers)
    ]
    eos = eos_token_ids(inputs.get_model(), inputs.tokenizer)
    fill_responses(
        inputs.eval_sets,
        generate=vllm_generator(config, run=RunDir(folder), stream=stream, eos=eos),
        tokenizer=inputs.tokenizer,
        eos=eos,
        fingerprint=fingerprints.responses,
        response_cache=caches[0],
    )
    found = {
        name: agreement(
            eval_set,
            fingerprint=fingerprints.responses,
            response_cache=caches[0],
            other_fingerprint=fingerprints.transformers,
            other_cache=caches[1],
            metric=metrics_of(config, eval_set)["strict"][0],
        )
        for name, eval_set in inputs.eval_sets.items()
    }
    return {**ENGINE_SETTINGS, "agreement": {name: each for name, each in found.items() if each is not None}}


def _evaluate_task(
    config: RunConfig, inputs: EvaluationInputs, name: str, *, stream: str, fingerprint: str, folder: Path, label: str
) -> EvalResult:
    """Evaluate one stream on one task; ``label`` begins the text of the progress bar."""
    eval_set = inputs.eval_sets[name]
    return evaluate(
        eval_set,
        get_model=inputs.get_model,
        stream=stream,
        tokenizer=inputs.tokenizer,
        model_fingerprint=fingerprint,
        metrics=metrics_of(config, eval_set),
        protocol=config.evaluation.protocol,
        batch_size=config.evaluation.batch_size,
        response_cache_dir=inputs.runs_root / "response_cache",
        output_dir=task_dir(folder, task=name, test_set=eval_set.fingerprint),
        label=f"{label}: {name}",
        dist_context=inputs.dist_context,
        kl=config.evaluation.kl,
        static_cache=config.evaluation.static_cache,
    )


def result_entry(
    config: RunConfig, name: str, eval_set: EvalSet, evaluated: EvalResult, *, trained_on: Sequence[Example] | None
) -> dict[str, Any]:
    """Return the entry of one task in `result.json`.

    ``trained_on`` holds the examples that the evaluated model was trained on; None for the original.
    """
    return {
        "role": "target" if name == config.target else "forgetting",
        "trained_on": trained_on is not None and name in learned_tasks(config),
        "test_set": eval_set.fingerprint,
        "contamination": find_contamination(eval_set.examples, trained_on or []),
        **asdict(evaluated),
    }


def learned_tasks(config: RunConfig) -> list[str]:
    """Return the tasks that a run's model is trained on: targets and replay tasks, parents included.

    Of an imported adapter only the target that the user named is known.
    """
    if config.is_imported:
        return [config.target] if config.target is not None else []
    trainings = training_chain(run_identity(config))
    replays = [replay_identity(training) for training in trainings]
    targets = [training["data"]["name"] for training in trainings]
    return [*targets, *(replay["task"] for replay in replays if replay)]


def metrics_of(config: RunConfig, eval_set: EvalSet) -> dict[str, list[str]]:
    """Return the metric modules of a task by protocol."""
    names = {"strict": eval_set.task.metrics, "paper_code": eval_set.task.paper_code_metrics}
    return {
        protocol: [config.metrics.get(metric, metric) for metric in metrics]
        for protocol, metrics in names.items()
        if metrics
    }
