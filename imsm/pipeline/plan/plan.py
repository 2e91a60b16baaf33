"""`mode=plan`: what a run would be and take; nothing is loaded, fetched or written."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imsm.config.identity import run_name
from imsm.config.schema import RunConfig
from imsm.distributed.gpus import visible_gpus
from imsm.models.adapters.base import freeze_adapter
from imsm.models.backbones.meta_model import build_meta_model, find_config
from imsm.models.builder import count_trainable, wrap_backbone
from imsm.pipeline.engine import engine_settings, topology_of
from imsm.pipeline.model import build_adapter, build_kl_regularizer, format_trainable, model_kwargs
from imsm.pipeline.plan.data import items_asked, judged, split_lengths, steps_taken, tasks_read
from imsm.pipeline.plan.downloads import DownloadItem, needed_backbone, needed_dataset
from imsm.pipeline.plan.memory import memory_parts
from imsm.pipeline.plan.render import show_block, show_page
from imsm.pipeline.plan.types import Plan
from imsm.pipeline.start import node_commands
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value
from imsm.utils.options import load_option
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from imsm.distributed.topology import Topology
    from imsm.models.siamese.model import SiameseForCausalLM


def print_plan(config: RunConfig, *, compact: bool, overrides: Sequence[str] = ()) -> None:
    """Print the plan of one run; a member of a sweep gets a compact one.

    Args:
        config: the run's.
        compact: a few lines in place of a page.
        overrides: of the command, for the lines that start it on several nodes.

    Raises:
        UserError: the backbone's architecture describes no model, or the adapter does not fit it.
    """
    plan = make_plan(config, overrides=overrides)
    trainable = None if plan.counts is None else format_trainable(plan.counts)
    (show_block if compact else show_page)(plan, trainable=trainable)


def make_plan(config: RunConfig, *, overrides: Sequence[str] = ()) -> Plan:
    """All that a plan says of one run; see `print_plan`."""
    layout = topology_of(config, gpus=visible_gpus(), elsewhere=True)
    model, notes = model_without_values(config)
    train = None
    if config.method.trainable:
        train = split_lengths(config, config.data, "train").limited(config.data.max_train_examples)
    tests = {name: split_lengths(config, task, "test") for name, task in judged(config).items()}
    memory = None if model is None else memory_parts(config, model, train=train, tests=tests, layout=layout)
    settings = _settings(config, layout)
    if layout.distributed and model is not None and config.method.trainable:
        settings["deepspeed"] = _flat(engine_settings(config, model, layout=layout))
    return Plan(
        name=run_name(config),
        settings=settings,
        counts=None if model is None else count_trainable(model),
        notes=notes,
        memory=memory or {},
        steps=steps_taken(config, train),
        items=items_asked(config, tests),
        needed=_needed(config, model),
        start=node_commands(config, layout, overrides=overrides, runs_root=runs_root()),
    )


def model_without_values(config: RunConfig) -> tuple[SiameseForCausalLM | None, list[str]]:
    """The run's model on torch's "meta" device, and what to know about it, a line each.

    The model is None where the backbone's architecture is not known, or where the adapter cannot
    be made without the weights.
    """
    backbone = config.backbone
    try:
        configuration, file = find_config(
            path=backbone.name_or_path, revision=backbone.revision, architecture=backbone.architecture
        )
    except LookupError as error:
        return None, [str(error)]
    plain = build_meta_model(configuration, dtype=backbone.dtype)
    adapter = build_adapter(config) if config.method.trainable else None
    try:
        with torch.device("meta"):
            model = wrap_backbone(plain, adapter=adapter, **model_kwargs(config))
    except (UserError, RuntimeError) as error:
        if not isinstance(error.__cause__ or error, RuntimeError):  # what "meta" cannot do
            raise
        first = str(error).strip().splitlines()[0]
        return None, [f"peft={config.peft.name}: cannot be counted without the weights ({first})"]
    if config.frozen_adapter is not None:
        freeze_adapter(model.adapted)
    model.kl_regularizer = build_kl_regularizer(config)
    model.train(config.method.trainable)
    return model, [] if file is not None else _assumed(config)


def _assumed(config: RunConfig) -> list[str]:
    """A hub id of one's own is taken for what the yaml describes; that has to be said."""
    backbone = config.backbone
    config_dir = Path(config.config_dir) if config.config_dir else None
    own = load_option("backbone", backbone.name, config_dir=config_dir).get("name_or_path")
    if backbone.name_or_path == own:
        return []
    return [
        f"counted with the architecture of backbone={backbone.name} ({own}): the config.json of "
        f"{backbone.name_or_path} is not here"
    ]


def _needed(config: RunConfig, model: SiameseForCausalLM | None) -> list[DownloadItem]:
    backbone = config.backbone
    stand_in = None
    if backbone.local_resolver is not None:
        module = importlib.import_module(backbone.local_resolver.rpartition(".")[0])
        describe = getattr(module, "stand_in", None)
        stand_in = describe(backbone.name_or_path) if describe is not None else None
    weights = None
    if model is not None:
        weights = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    found = [needed_backbone(backbone.name_or_path, revision=backbone.revision, stand_in=stand_in, weights=weights)]
    for task, source in tasks_read(config):
        if source.kind == "hub" and task.hub is not None:
            size = task.stats.megabytes if task.stats is not None else None
            found.append(needed_dataset(task.hub, megabytes=size))
    return found


def _settings(config: RunConfig, layout: Topology) -> dict[str, str]:
    """The resolved configuration, a line per group."""
    backbone, peft, method, data = config.backbone, config.peft, config.method, config.data
    chosen = backbone.model_dump(include={"name_or_path", "revision", "dtype", "attn_implementation"})
    lines = {
        "backbone": _values(backbone.name, chosen),
        "method": f"{method.name}: the {method.stream} stream answers",
    }
    if method.trainable:
        modules = peft.target_modules(backbone) or None
        replay = {"replay": peft.replay.model_dump()} if peft.replay is not None else {}
        lines["peft"] = _values(peft.name, {"modules": modules} | peft.arguments() | replay)
    if config.frozen_adapter is not None:
        lines["peft"] += f"; the finished adapter of {config.frozen_adapter}, which stays as it is"
    if method.stream == "interwoven":
        gate = {"pooling": config.gate.pooling} | config.gate.arguments()
        lines["gate"] = _values(config.gate.name, gate)
    place = data.target_source()
    chosen = {"source": place.kind, "path": place.path, "prompt_style": data.prompt_style}
    lines["data"] = _values(data.name, chosen | {"max_train_examples": data.max_train_examples})
    if method.trainable:
        recipe = config.trainer.model_dump(exclude={"name", "method_specific_keys"})
        recipe = {k: v for k, v in recipe.items() if not k.startswith("checkpoint")}
        lines["trainer"] = _values(config.trainer.name, recipe)
    lines["evaluation"] = _values("", config.evaluation.model_dump())
    engine = config.engine.model_dump(exclude={"name"})
    lines["engine"] = _values(config.engine.name, engine | {"seed": config.seed})
    if layout.distributed:
        lines["processes"] = str(layout)
    return lines


def _flat(settings: dict[str, Any]) -> str:
    """DeepSpeed's own keys and values, those inside ZeRO's among the others."""
    zero = settings["zero_optimization"]
    return _values("", {k: v for k, v in settings.items() if k != "zero_optimization"} | zero)


def _values(name: str, values: dict[str, Any]) -> str:
    """Keys and values as one writes them; what is null is left out."""
    shown = ", ".join(f"{k} {format_value(v)}" for k, v in values.items() if v is not None)
    return f"{name}: {shown}" if name else shown
