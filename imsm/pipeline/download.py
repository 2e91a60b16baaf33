"""`mode=download`: all that a run reads is fetched and looked through where there is a network.

Afterwards the same command runs without one. No run's folder is made. With `hidden_state_cache=disk` the
bank is filled here, by the machine that the run is to train on; otherwise no weight is loaded and
no GPU asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.config.identity import parent_trainings, run_name
from imsm.config.schema import RunConfig
from imsm.config.stages import expand_stages
from imsm.data.task import HubDataset
from imsm.pipeline.plan.data import tasks_read
from imsm.utils.errors import UserError
from imsm.utils.formatting import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_prepared: dict[str, str] = {}
"""What this process has prepared, and what came of it: members of a sweep share most of it."""


def prepare(config: RunConfig, *, program: str, arguments: Sequence[str]) -> None:
    """Have all that a run reads here, and print what that is and the run's own command.

    Args:
        config: of the run.
        program: what was started (`sys.argv[0]`).
        arguments: what it was given.

    Raises:
        UserError: something cannot be had, or does not fit (no example short enough, say).
    """
    from imsm.data.chat_template import use_chat_template
    from imsm.models.backbones.loading import load_tokenizer

    first = not _prepared
    stages = expand_stages(config)
    for stage in stages:
        print(run_name(stage))
    backbone = config.backbone
    place: dict[str, Any] = backbone.model_dump(include={"name_or_path", "revision", "local_resolver"})
    _once("backbone", place, partial(_backbone, place))
    tokenizer = load_tokenizer(**place)
    if config.data.chat_template:
        use_chat_template(tokenizer)
    for stage in stages:
        _data(stage, tokenizer)
        _bank(stage, tokenizer)
    if first:
        print("\nthe run itself, with or without a network:")
        print(f"  HF_HUB_OFFLINE=1 {_command(program, arguments)}", flush=True)


def check_here(config: RunConfig) -> None:
    """Without a network, look before anything is loaded whether a run's files are here.

    Only names are looked at, in a moment; what a file holds shows when it is read.

    Raises:
        UserError: something is missing; one line.
    """
    from huggingface_hub import is_offline_mode

    from imsm.models.backbones.download import missing_files
    from imsm.models.backbones.loading import resolve_path
    from imsm.pipeline.plan.downloads import needed_dataset

    if not is_offline_mode():
        return
    backbone = config.backbone
    source = resolve_path(backbone.name_or_path, local_resolver=backbone.local_resolver)
    if not Path(source).is_dir() and (problem := missing_files(source, revision=backbone.revision)):
        raise UserError(problem)
    for hub in _on_hub(config).values():
        needed = needed_dataset(hub, megabytes=None)
        if needed.here is None:
            raise UserError(
                f"{needed.what}: is not in the cache of this machine, and HF_HUB_OFFLINE is "
                "set; give the same command with mode=download where there is a network"
            )


def _on_hub(config: RunConfig) -> dict[str, HubDataset]:
    """The datasets on the hub of which a run reads anything, what was learned before it too."""
    learned = [identity["data"] for identity in parent_trainings(config)]
    before = {data["name"]: HubDataset(**data["hub"]) for data in learned if data["source"]["kind"] == "hub"}
    return before | {
        task.name: task.hub
        for task, where in tasks_read(config)
        if where.kind == "hub" and task.hub is not None
    }


def _backbone(place: dict[str, Any]) -> str:
    from imsm.models.backbones.download import fetch_backbone
    from imsm.models.backbones.fingerprint import backbone_fingerprint

    folder = fetch_backbone(**place)
    fingerprint = backbone_fingerprint(**place)
    shown = fingerprint.rpartition("@")[2][:8]
    return f"{place['path']}: {_size(folder)} in {folder}, fingerprint {shown}"


def _data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fetch and tokenise what is learned and what is asked."""
    from imsm.pipeline.data import all_training_examples, tokenized_training_set

    reads = {
        "backbone": config.backbone.model_dump(mode="json"),
        "chat": config.data.chat_template,
        "prompt_style": config.data.prompt_style,
    }
    if config.method.trainable:
        replay = config.peft.replay
        learns = {"data": config.data.model_dump(mode="json"), "replay": replay and replay.model_dump(mode="json")}
        _once(
            f"{config.data.name} (train)",
            reads | learns,
            lambda: _counted(tokenized_training_set(config, tokenizer)[0]),
        )
        if config.frozen_run is not None:  # the stages of a sequence have their own turns
            _once(
                "all that is learned",
                reads | learns | {"frozen": config.frozen_run.model_dump(mode="json")},
                lambda: f"{len(all_training_examples(config)):,} examples",
            )
    for name, task in config.tasks.items():
        alone = config.model_copy(update={"tasks": {name: task}})
        own = name == config.data.name
        asked = {
            "task": (config.data if own else task).model_dump(mode="json"),
            "limit": config.evaluation.limit_of(name),
            "mirror_dir": config.data.mirror_dir,
            "source": config.data.source,
        }
        _once(f"{name} (test)", reads | asked, partial(_test_set, alone, name, tokenizer))
    for name, hub in _on_hub(config).items():
        _once(f"{name} (dataset)", hub.model_dump(), partial(_dataset, hub))


def _bank(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill the bank of the original's memories if that is asked for, else say who will."""
    from imsm.pipeline.model import needs_original_stream

    if config.hidden_state_cache not in ("auto", "disk") or not needs_original_stream(config):
        return
    replay = config.peft.replay
    of = {
        "where": config.hidden_state_cache,
        "limit": config.hidden_state_cache_gb,
        "device": config.engine.device,
        "backbone": config.backbone.model_dump(mode="json"),
        "pooling": config.gate.pooling,
        "data": config.data.model_dump(mode="json"),
        "replay": replay and replay.model_dump(mode="json"),
    }
    _once(f"{config.data.name} (bank)", of, partial(_filled, config, tokenizer))


def _filled(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if config.hidden_state_cache == "auto":
        return "filled by the first run; hidden_state_cache=disk fills it here"
    import transformers

    from imsm.config.identity import baseline_config
    from imsm.distributed.context import DistributedContext
    from imsm.pipeline.data import tokenized_training_set
    from imsm.pipeline.engine import local_device
    from imsm.pipeline.hidden_state_cache import precompute_cache
    from imsm.pipeline.train import new_model

    transformers.utils.logging.disable_progress_bar()
    items = tokenized_training_set(config, tokenizer)[0]
    model = new_model(baseline_config(config), None, device=local_device(config, DistributedContext()))
    return precompute_cache(config, model, items, pad_id=tokenizer.pad_token_id)


def _test_set(config: RunConfig, name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    from imsm.pipeline.data import eval_sets

    return _counted(eval_sets(config, tokenizer)[name].prompts)


def _dataset(hub: HubDataset) -> str:
    """Where what was fetched of a dataset lies now."""
    from imsm.pipeline.plan.downloads import dataset_folder

    folder = dataset_folder(hub.path, name=hub.name)
    return f"{hub.path}: " + (f"{_size(folder)} in {folder}" if folder else "nothing is kept")


def _once(what: str, of: dict[str, Any], work: Callable[[], str]) -> None:
    """Do a piece of work and print what came of it, unless this process has done the same."""
    key = repr((what, sorted(of.items())))
    if key in _prepared:
        return
    _prepared[key] = work()
    print(f"  {what:<20} {_prepared[key]}", flush=True)


def _counted(items: Sequence[Any]) -> str:
    lengths = [len(item.prompt_ids) + len(item.answer_ids) for item in items]
    return f"{len(items):,} examples, {sum(lengths):,} tokens, the longest {max(lengths):,}"


def _size(folder: Path) -> str:
    return format_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _command(program: str, arguments: Sequence[str]) -> str:
    """What to give on the machine that trains: the same without `mode=download`."""
    given = [argument for argument in arguments if argument.partition("=")[0] != "mode"]
    start = ["imsm"] if Path(program).name == "imsm" else ["python", "-m", "imsm.run"]
    return shlex.join([*start, *given])
