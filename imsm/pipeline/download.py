"""`mode=download`: fetch and check everything a run reads, so that it can run offline.

No run folder is created. With `hidden_state_cache=disk` the cache is computed as well, on this
machine; otherwise no weights are loaded and no GPU is used.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import is_offline_mode
from transformers import PreTrainedTokenizerBase

from imsm.config.identity import baseline_config, parent_trainings, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages
from imsm.data.example import Example
from imsm.data.task import HubDataset, Role
from imsm.distributed.context import DistributedContext
from imsm.models.backbones.download import fetch_backbone, missing_files
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.backbones.loading import resolve_path
from imsm.pipeline.data import (
    all_training_examples,
    evaluated_tasks,
    load_eval_sets,
    load_run_tokenizer,
    tokenized_training_set,
)
from imsm.pipeline.engine import local_device
from imsm.pipeline.hidden_state_cache import precompute_cache
from imsm.pipeline.model import needs_original_stream, new_model
from imsm.pipeline.plan.data import tasks_read
from imsm.pipeline.plan.downloads import dataset_folder, needed_dataset
from imsm.pipeline.rehearsal import read_rehearsal_data
from imsm.pipeline.watch import watched_items
from imsm.training.hidden_state_store import folder_size
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_bytes

# Results by item: the jobs of a sweep share most of their downloads.
_done: dict[str, str] = {}


def download(config: RunConfig, arguments: Sequence[str]) -> None:
    """Fetch and check everything a run reads; print a list of it and the command of the run.

    ``arguments`` are those of this command, without --config-dir.

    Raises:
        UserError: Something is not available or invalid, e.g. no example is short enough.
    """
    is_first = not _done
    stages = expand_stages(config)
    for stage in stages:
        print(run_name(stage))
    source = config.backbone.model_dump(include={"name_or_path", "revision", "local_resolver"})
    _once("backbone", source, partial(_download_backbone, source))
    tokenizer = load_run_tokenizer(config)
    for stage in stages:
        _download_data(stage, tokenizer)
        _compute_cache(stage, tokenizer)
    if is_first:
        print("\nthe command of the run, which needs no network:")
        print(f"  HF_HUB_OFFLINE=1 {_command(config, arguments)}", flush=True)


def check_offline_files(config: RunConfig) -> None:
    """In offline mode, check by name that all files of a run are available locally.

    Raises:
        UserError: A file is missing.
    """
    if not is_offline_mode():
        return
    backbone = config.backbone
    source = resolve_path(backbone.name_or_path, local_resolver=backbone.local_resolver)
    if not Path(source).is_dir() and (error := missing_files(source, revision=backbone.revision)):
        raise UserError(error)
    for hub in _hub_datasets(config).values():
        item = needed_dataset(hub, megabytes=None)
        if item.location is None:
            raise UserError(
                f"{item.name}: is not in the cache of this machine and HF_HUB_OFFLINE is set; run the same command "
                "with mode=download on a machine with a network"
            )


def _hub_datasets(config: RunConfig) -> dict[str, HubDataset]:
    """Return the Hub datasets that a run or one of its parents reads, by task."""
    parents = [identity["data"] for identity in parent_trainings(config)]
    # parents are read again to check the test sets for contamination
    datasets = {data["name"]: HubDataset(**data["hub"]) for data in parents if data["source"]["kind"] == "hub"}
    return datasets | {
        task.name: task.hub for task, source in tasks_read(config) if source.kind == "hub" and task.hub is not None
    }


def _download_backbone(source: dict[str, Any]) -> str:
    folder = fetch_backbone(**source)
    short_hash = backbone_fingerprint(**source).rpartition("@")[2][:8]
    return f"{source['name_or_path']}: {format_bytes(folder_size(folder))} in {folder}, fingerprint {short_hash}"


def _download_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load and tokenize the training and evaluation sets of one run."""
    shared = {
        "backbone": config.backbone.model_dump(mode="json"),
        "chat": config.data.chat_template,
        "prompt_style": config.data.prompt_style,
    }
    if config.method.trainable:
        training = shared | _training_key(config)
        _once(
            f"{config.data.name} (train)",
            training,
            lambda: _format_lengths(tokenized_training_set(config, tokenizer)[0]),
        )
        _download_rehearsal(config, tokenizer, training)
        if config.frozen_run is not None:  # a parent; the stages of a sequence are downloaded one by one
            _once(
                "parent runs (train)",
                training | {"frozen": config.frozen_run.model_dump(mode="json")},
                lambda: f"{len(all_training_examples(config)):,} examples",
            )
    for name, task in evaluated_tasks(config).items():
        key = {
            "task": task.model_dump(mode="json"),
            "limit": config.evaluation.limit_of(name),
            "mirror_dir": config.data.mirror_dir,
            "source": config.data.source,
        }
        # one task per call, so that jobs of a sweep share the tasks that are equal
        only_task = config.model_copy(update={"tasks": {name: task}})
        _once(f"{name} (test)", shared | key, partial(_load_eval_set, only_task, name, tokenizer))
    for name, hub in _hub_datasets(config).items():
        _once(f"{name} (dataset)", hub.model_dump(), partial(_describe_dataset, hub))


def _download_rehearsal(config: RunConfig, tokenizer: PreTrainedTokenizerBase, training: dict[str, Any]) -> None:
    """Load what rehearsal and `trainer.watch_items` read; ``training`` is the key of the training set."""
    rehearsal, count = config.rehearsal, config.trainer.watch_items
    tasks = {**config.replay_tasks, **evaluated_tasks(config)}
    key = training | {
        "rehearsal": rehearsal.model_dump(mode="json"),
        "prompts": config.prompts_hash,
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
    }
    if rehearsal.source != "none":
        what = "replay" if rehearsal.source == "replay" else "prompts"
        _once(f"rehearsal ({what})", key, lambda: _format_lengths(read_rehearsal_data(config, tokenizer)))
    if count is not None:
        _once("watched items", key | {"count": count}, lambda: _format_items(watched_items(config, count)))


def _format_items(items: Mapping[str, tuple[Role, list[Example]]]) -> str:
    return ", ".join(f"{name} {len(examples)} ({split})" for name, (split, examples) in items.items())


def _compute_cache(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compute the hidden-state cache with `disk`; with `auto`, report that the first run will."""
    if config.hidden_state_cache not in ("auto", "disk") or not needs_original_stream(config):
        return
    key = {
        "hidden_state_cache": config.hidden_state_cache,
        "limit": config.hidden_state_cache_gb,
        "device": config.engine.device,
        "backbone": config.backbone.model_dump(mode="json"),
        "pooling": config.gate.pooling,
        **_training_key(config),
    }
    _once(f"{config.data.name} (cache)", key, partial(_precompute, config, tokenizer))


def _precompute(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if config.hidden_state_cache == "auto":
        return "computed by the first run; hidden_state_cache=disk computes it here"
    transformers.utils.logging.disable_progress_bar()
    examples = tokenized_training_set(config, tokenizer)[0]
    # the original model is enough: the cache contains no hidden states of the tuned one
    model = new_model(baseline_config(config), None, device=local_device(config, DistributedContext()))
    return precompute_cache(config, model, examples, pad_id=tokenizer.pad_token_id)


def _load_eval_set(config: RunConfig, name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return _format_lengths(load_eval_sets(config, tokenizer)[name].prompts)


def _describe_dataset(hub: HubDataset) -> str:
    folder = dataset_folder(hub.path, name=hub.name)
    location = f"{format_bytes(folder_size(folder))} in {folder}" if folder else "not cached"
    return f"{hub.path}: {location}"


def _training_key(config: RunConfig) -> dict[str, Any]:
    replay = config.peft.replay
    return {"data": config.data.model_dump(mode="json"), "replay": replay and replay.model_dump(mode="json")}


def _once(label: str, key: dict[str, Any], work: Callable[[], str]) -> None:
    """Run ``work`` and print its result, unless this process already did for the same key."""
    name = repr((label, sorted(key.items())))
    if name not in _done:
        _done[name] = work()
        print(f"  {label:<20} {_done[name]}", flush=True)


def _format_lengths(examples: Sequence[Any]) -> str:
    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]
    return f"{len(examples):,} examples, {sum(lengths):,} tokens, longest {max(lengths):,}"


def _command(config: RunConfig, arguments: Sequence[str]) -> str:
    """Return this command without `mode=download`."""
    config_dir = ["--config-dir", config.config_dir] if config.config_dir else []
    kept = [argument for argument in arguments if argument.partition("=")[0] != "mode"]
    return shlex.join(["imsm", "run", *config_dir, *kept])
