"""`mode=plan`: what a run would do and need; nothing is loaded, downloaded or written."""

from collections.abc import Sequence
from typing import Any

from imsm.config.identity import run_name
from imsm.config.schema import RunConfig
from imsm.distributed.gpus import visible_gpus
from imsm.distributed.topology import Topology
from imsm.models.builder import count_trainable
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import evaluated_tasks
from imsm.pipeline.engine import engine_settings, topology_of
from imsm.pipeline.model import format_trainable
from imsm.pipeline.nodes import node_commands
from imsm.pipeline.plan.data import format_evaluation, format_steps, position_notes, split_lengths, tasks_read
from imsm.pipeline.plan.downloads import needed_backbone, needed_dataset
from imsm.pipeline.plan.fit import memory_problem
from imsm.pipeline.plan.memory import estimate_memory, planned_batch_size
from imsm.pipeline.plan.meta import build_plan_model
from imsm.pipeline.plan.placement import describe_placement
from imsm.pipeline.plan.render import show_block, show_page
from imsm.pipeline.plan.time import estimate_time
from imsm.pipeline.plan.types import DownloadItem, Plan
from imsm.utils.messages import format_value
from imsm.utils.paths import runs_root
from imsm.utils.trust import RESOLVERS, import_trusted_module


def print_plan(config: RunConfig, *, compact: bool, as_json: bool = False, overrides: Sequence[str] = ()) -> None:
    """Print the plan of one run: a page, a few lines if ``compact`` (for a job of a sweep), or one line of JSON.

    ``overrides`` of the command are part of the lines that start it on several nodes.

    Raises:
        UserError: The backbone's architecture is invalid, or the adapter does not fit it.
    """
    plan = make_plan(config, overrides=overrides)
    if as_json:
        print(plan.to_json())
        return
    trainable = None if plan.trainable is None else format_trainable(plan.trainable)
    (show_block if compact else show_page)(plan, trainable=trainable)


def make_plan(config: RunConfig, *, overrides: Sequence[str] = ()) -> Plan:
    """Return the plan of one run; see `print_plan`."""
    # elsewhere: a plan is often made on a machine without the GPUs of the run
    topology = topology_of(config, gpus=visible_gpus(), elsewhere=True)
    model, notes = build_plan_model(config)
    train = None
    if config.method.trainable:
        train = split_lengths(config, config.data, "train").limited(config.data.max_train_examples)
    tests = {name: split_lengths(config, task, "test") for name, task in evaluated_tasks(config).items()}
    notes += position_notes(config, tests)
    estimates: dict[str, Any] = {}
    memory = {}
    if model is not None:
        batch_size = planned_batch_size(config, model, tests=tests, topology=topology)
        options: dict[str, Any] = {"train": train, "tests": tests, "topology": topology, "batch_size": batch_size}
        memory = estimate_memory(config, model, **options)
        prompt_tokens = max(lengths.longest[0] for lengths in tests.values())
        problem = memory_problem(config, model, prompt_tokens=prompt_tokens, topology=topology)
        notes += [] if problem is None else [f"does not fit on this machine: {problem}"]
        estimates["time"] = estimate_time(config, model, **options)
        estimates["placement"] = describe_placement(config, model, **options)
    settings = _settings(config, topology)
    if topology.stage and model is not None and config.method.trainable:
        deepspeed = engine_settings(config, model, topology=topology)
        settings["deepspeed"] = _format_values(
            deepspeed | deepspeed["zero_optimization"] | {"zero_optimization": None}
        )
    return Plan(
        name=run_name(config),
        settings=settings,
        trainable=None if model is None else count_trainable(model),
        notes=notes,
        memory=memory,
        steps=format_steps(config, train),
        evaluation=format_evaluation(config, tests),
        downloads=_downloads(config, model),
        start=node_commands(config, topology, overrides=overrides, runs_root=runs_root()),
        **estimates,
    )


def _downloads(config: RunConfig, model: SiameseForCausalLM | None) -> list[DownloadItem]:
    backbone = config.backbone
    local_source = None
    if backbone.local_resolver is not None:
        name = backbone.local_resolver.rpartition(".")[0]
        module = import_trusted_module(name, within=RESOLVERS, key="backbone.local_resolver")
        describe = getattr(module, "stand_in", None)
        local_source = describe(backbone.name_or_path) if describe is not None else None
    parameters = None
    if model is not None:
        parameters = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    items = [
        needed_backbone(
            backbone.name_or_path, revision=backbone.revision, local_source=local_source, parameters=parameters
        )
    ]
    for task, source in tasks_read(config):
        if source.kind == "hub" and task.hub is not None:
            megabytes = task.stats.megabytes if task.stats is not None else None
            items.append(needed_dataset(task.hub, megabytes=megabytes))
    return items


def _settings(config: RunConfig, topology: Topology) -> dict[str, str]:
    """Return the resolved configuration as one line per group."""
    backbone, peft, method, data = config.backbone, config.peft, config.method, config.data
    values = backbone.model_dump(include={"name_or_path", "revision", "dtype", "attn_implementation"})
    lines = {
        "backbone": _format_values(values, name=backbone.name),
        "method": f"{method.name}: {method.stream} stream",
    }
    if method.trainable:
        modules = peft.target_modules(backbone) or None
        replay = {"replay": peft.replay.model_dump()} if peft.replay is not None else {}
        lines["peft"] = _format_values({"modules": modules} | peft.arguments() | replay, name=peft.name)
    if config.frozen_adapter is not None:
        lines["peft"] += f"; frozen, loaded from {config.frozen_adapter}"
    if method.stream == "interwoven":
        gate = {"pooling": config.gate.pooling} | config.gate.arguments()
        lines["gate"] = _format_values(gate, name=config.gate.name)
    source = data.target_source()
    values = {"source": source.kind, "path": source.path, "prompt_style": data.prompt_style}
    lines["data"] = _format_values(values | {"max_train_examples": data.max_train_examples}, name=data.name)
    if method.trainable:
        recipe = config.trainer.model_dump(exclude={"name", "method_specific_keys"})
        recipe = {k: v for k, v in recipe.items() if not k.startswith("save_")}
        lines["trainer"] = _format_values(recipe, name=config.trainer.name)
    if method.trainable and config.rehearsal.source != "none":
        lines["rehearsal"] = _format_values(config.rehearsal.own_values())
    lines["evaluation"] = _format_values(config.evaluation.model_dump())
    engine = config.engine.model_dump(exclude={"name"})
    lines["engine"] = _format_values(engine | {"seed": config.seed}, name=config.engine.name)
    if topology.distributed:
        lines["processes"] = str(topology)
    return lines


def _format_values(values: dict[str, Any], *, name: str = "") -> str:
    """Return keys and values as they are written in overrides, without null values."""
    text = ", ".join(f"{key} {format_value(value)}" for key, value in values.items() if value is not None)
    return f"{name}: {text}" if name else text
