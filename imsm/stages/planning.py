"""`mode=plan`: what a run would be and take; nothing is loaded, fetched or written."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imsm.assemble import count_trainable, put_together
from imsm.backbones.load import resolve_path
from imsm.backbones.skeleton import build_skeleton, find_configuration
from imsm.builders import show
from imsm.config import RunConfig, TaskConfig
from imsm.data.sources import Source
from imsm.data.task import Role, Task
from imsm.errors import UserError
from imsm.identity import run_name
from imsm.options import find_option
from imsm.plan.downloads import Needed, needed_backbone, needed_dataset
from imsm.plan.examples import Lengths, counted_lengths, known_lengths, limits_alone, within_limits
from imsm.plan.memory import bank_bytes, cache_bytes, count_bytes, estimate_step
from imsm.plan.plan import Part, Plan
from imsm.plan.show import show_block, show_page
from imsm.stages.parts import adapter_of, parts_of, trainable_line
from imsm.training.loop import Batching

if TYPE_CHECKING:
    from imsm.siamese.model import SiameseForCausalLM


def print_plan(config: RunConfig, *, compact: bool) -> None:
    """Print the plan of one run; a member of a sweep gets a compact one.

    Raises:
        UserError: the backbone's architecture describes no model, or the adapter does not fit it.
    """
    plan = make_plan(config)
    trainable = None if plan.counts is None else trainable_line(plan.counts)
    (show_block if compact else show_page)(plan, trainable=trainable)


def make_plan(config: RunConfig) -> Plan:
    """All that a plan says of one run."""
    model, notes = _model(config)
    train = _lengths(config, config.data, "train") if config.method.trained else None
    if train is not None:
        train = train.limited(config.data.train_limit)
    tests = {name: _lengths(config, task, "test") for name, task in _judged(config).items()}
    memory = _memory(config, model, train, tests) if model is not None else ([], [], [])
    training, evaluation, disk = memory
    weights = None if model is None else _frozen(model)
    return Plan(
        name=run_name(config),
        settings=_settings(config),
        counts=None if model is None else count_trainable(model),
        notes=notes,
        training=training,
        evaluation=evaluation,
        disk=disk,
        steps=_steps(config, train),
        items=_items(config, tests),
        needed=_needed(config, weights),
    )


def _model(config: RunConfig) -> tuple[SiameseForCausalLM | None, list[str]]:
    """The run's model without values, and what to know about it; None if it is not known."""
    backbone = config.backbone
    if not config.method.trained:
        adapter = None
    else:
        adapter = adapter_of(config)
    try:
        configuration, where = find_configuration(
            path=backbone.path, revision=backbone.revision, architecture=backbone.architecture
        )
    except LookupError as error:
        return None, [str(error)]
    plain = build_skeleton(configuration, dtype=backbone.dtype)
    with torch.device("meta"):
        model = put_together(plain, adapter=adapter, **parts_of(config))
    own = find_option("backbone", backbone.name, config_dir=_config_dir(config)).get("path")
    notes = []
    if where is None and own != backbone.path:
        notes.append(
            f"counted with the architecture of backbone={backbone.name} ({own}): the config.json "
            f"of {backbone.path} is not here"
        )
    return model.train(config.method.trained), notes


def _memory(
    config: RunConfig,
    model: SiameseForCausalLM,
    train: Lengths | None,
    tests: dict[str, Lengths],
) -> tuple[list[Part], list[Part], list[Part]]:
    exact = count_bytes(model, optimizer=config.trainer.optimizer)
    weights = Part(
        name="weights",
        size=exact.weights,
        how=f"{_frozen(model):,} frozen parameters, {config.backbone.dtype}; both streams share",
        exact=True,
    )
    trainables = Part(name="trainables", size=exact.trainables, how="float32", exact=True)
    recipe = config.trainer
    rows = recipe.micro_batch_size or recipe.batch_size
    prompt, answer = train.longest if train is not None else (1, 1)
    step = estimate_step(
        model,
        rows=rows,
        tokens=prompt + answer,
        answer_tokens=answer,
        attention=config.backbone.attn_implementation,
        checkpointing=recipe.gradient_checkpointing,
    )
    training, disk = [], []
    if train is not None:
        longest = f"a micro-batch of {rows} with prompts of {prompt} and answers of {answer} tokens"
        checkpointed = ", gradient checkpointing" if recipe.gradient_checkpointing else ""
        training = [
            weights,
            trainables,
            Part(name="gradients", size=exact.gradients, how="float32", exact=True),
            Part(name="optimizer", size=exact.optimizer, how=recipe.optimizer, exact=True),
            Part(
                name="activations",
                size=step.activations,
                how=f"what autograd keeps of {longest}{checkpointed}",
                exact=False,
            ),
            Part(
                name="answer logits",
                size=step.logits,
                how=f"{rows} × {answer} answer tokens × {model.config.vocab_size:,} words",
                exact=False,
            ),
        ]
        disk = _bank(config, model, train)
    return training, _evaluation(config, weights, trainables, step.cache, tests), disk


def _evaluation(
    config: RunConfig,
    weights: Part,
    trainables: Part,
    cache: list[tuple[int, int | None]],
    tests: dict[str, Lengths],
) -> list[Part]:
    """Weights and the largest key-value cache of the tasks that are asked."""
    rows, streams = config.evaluation.batch_size, 1 + (config.method.stream == "interwoven")
    longest = {
        name: lengths.longest[0] + _judged(config)[name].max_new_tokens
        for name, lengths in tests.items()
    }
    name, tokens = max(longest.items(), key=lambda item: item[1])
    size = cache_bytes(cache, rows=rows, tokens=tokens, streams=streams) if cache else None
    new = _judged(config)[name].max_new_tokens
    how = f"{rows} prompts of {name}, {tokens - new} and {new} new tokens"
    how += ", both streams" if streams == 2 else ""
    caches = Part(name="KV caches", size=size, how=how, exact=False)
    return [weights, *([trainables] if config.method.trained else []), caches]


def _bank(config: RunConfig, model: SiameseForCausalLM, train: Lengths) -> list[Part]:
    if config.method.stream != "interwoven":
        return []
    size, how = None, "the number and lengths of the examples are not known"
    if train.examples is not None and train.mean is not None:
        answer = train.mean[1]
        size = bank_bytes(model, examples=train.examples, answer_tokens=answer)
        how = f"original memories of {train.examples:,} examples, {answer:.0f} answer tokens each "
        how += "and the query's"
    return [Part(name="memory bank", size=size, how=how, exact=False)]


def _steps(config: RunConfig, train: Lengths | None) -> str:
    if train is None:
        return "none: nothing is trained"
    recipe = config.trainer
    batching = Batching(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        seed=config.seed,
    )
    epochs = f"{recipe.epochs} epochs" if recipe.epochs > 1 else "1 epoch"
    if train.examples is None:
        return (
            f"{batching.steps(1000):,} per 1,000 examples ({epochs}, batches of "
            f"{recipe.batch_size}); how many there are is not known before the data is here"
        )
    replay = config.peft.replay
    more = round(replay.share * train.examples) if replay is not None else 0
    added = f" and {more:,} replayed" if more else ""
    return (
        f"{batching.steps(train.examples + more):,} ({epochs} over {train.examples:,} examples"
        f"{added}, batches of {recipe.batch_size}; {train.source})"
    )


def _items(config: RunConfig, tests: dict[str, Lengths]) -> str:
    parts = []
    for name, lengths in tests.items():
        found = lengths.limited(config.evaluation.items_of(name)).examples
        asked = found if found is not None else config.evaluation.items_of(name)
        parts.append(f"{name} {asked:,}" if asked is not None else f"{name} (not known)")
    return ", ".join(parts)


def _lengths(config: RunConfig, described: TaskConfig, role: Role) -> Lengths:
    """Counted where the data is local, else from the yaml, else the limits."""
    own = described.name == config.data.name
    where = config.data.target_source() if own else config.data.forgetting_source(config.backbone)
    task = Task(**described.task_arguments())
    found = None
    if where.kind != "hub":
        found = counted_lengths(
            task,
            role,
            source=Source(**where.model_dump()),
            prompts=config.data.prompts,
            tokenizer=_tokenizer(config),
        )
    elif described.facts is not None:
        found = known_lengths(described.facts.model_dump(), role)
    return within_limits(found or limits_alone(task), task)


def _needed(config: RunConfig, weights: int | None) -> list[Needed]:
    backbone = config.backbone
    stand_in = None
    if backbone.local is not None:
        module = importlib.import_module(backbone.local.rpartition(".")[0])
        describe = getattr(module, "stand_in", None)
        stand_in = describe(backbone.path) if describe is not None else None
    found = {
        "": needed_backbone(
            backbone.path, revision=backbone.revision, stand_in=stand_in, weights=weights
        )
    }
    trained: list[TaskConfig] = [config.data] if config.method.trained else []
    for task in (*trained, *_judged(config).values(), *config.replay_tasks.values()):
        own = task.name == config.data.name
        source = (
            config.data.target_source() if own else config.data.forgetting_source(backbone)
        )
        if source.kind == "hub" and task.hub is not None:
            size = task.facts.megabytes if task.facts is not None else None
            found[task.name] = needed_dataset(task.hub.model_dump(), megabytes=size)
    return list(found.values())


def _settings(config: RunConfig) -> dict[str, str]:
    """The resolved configuration, a line per group."""
    backbone, peft, method, data = config.backbone, config.peft, config.method, config.data
    modules = peft.target_modules(backbone)
    place = data.target_source()
    lines = {
        "backbone": _values(
            backbone.name, backbone.model_dump(include={"path", "dtype", "attn_implementation"})
        ),
        "method": f"{method.name}: the {method.stream} stream answers",
    }
    if method.trained:
        lines["peft"] = _values(peft.name, {"modules": modules, **peft.arguments()})
    if method.stream == "interwoven":
        gate = {"pooling": config.gate.pooling, **config.gate.arguments()}
        lines["gate"] = _values(config.gate.name, gate)
    source = f"{place.kind} {place.path}" if place.path else place.kind
    lines["data"] = f"{data.name}: from {source}, prompts {data.prompts}" + (
        f", {data.train_limit} examples" if data.train_limit else ""
    )
    if method.trained:
        recipe = config.trainer.model_dump(exclude={"name", "by_method", "checkpoint_minutes"})
        lines["trainer"] = _values(config.trainer.name, recipe)
    asked = config.evaluation.model_dump()
    lines["evaluation"] = _values("", {k: v for k, v in asked.items() if v is not None})
    lines["engine"] = f"{config.engine.name}, device {config.engine.device}, one process"
    lines["seed"] = str(config.seed)
    return lines


def _values(name: str, values: dict[str, Any]) -> str:
    shown = ", ".join(f"{key} {show(value)}" for key, value in values.items())
    return f"{name}: {shown}" if name else shown


def _judged(config: RunConfig) -> dict[str, TaskConfig]:
    return {
        name: config.data if name == config.data.name else task
        for name, task in config.tasks.items()
    }


def _frozen(model: SiameseForCausalLM) -> int:
    return sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)


def _tokenizer(config: RunConfig) -> Path | None:
    path = resolve_path(config.backbone.path)
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else None


def _config_dir(config: RunConfig) -> Path | None:
    return Path(config.config_dir) if config.config_dir else None
