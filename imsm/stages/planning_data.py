"""What a plan says of a run's data: how many examples, how long, how many steps."""

from __future__ import annotations

from pathlib import Path

from imsm.backbones.load import resolve_path
from imsm.config import RunConfig, TaskConfig
from imsm.config import Source as SourceConfig
from imsm.data.sources import DataSource
from imsm.data.task import Role, Task
from imsm.plan.examples import LengthStats, counted_lengths, known_lengths, limits_alone, within_limits
from imsm.training.loop import BatchPlan


def judged(config: RunConfig) -> dict[str, TaskConfig]:
    """The tasks that are asked, by name; the target as the run has it."""
    return {
        name: config.data if name == config.data.name else task
        for name, task in config.tasks.items()
    }


def tasks_read(config: RunConfig) -> list[tuple[TaskConfig, SourceConfig]]:
    """Every dataset of which a run reads anything, once, and where it comes from."""
    trained: list[TaskConfig] = [config.data] if config.method.trainable else []
    tasks = (*trained, *judged(config).values(), *config.replay_tasks.values())
    return [
        (
            task,
            config.data.target_source()
            if task.name == config.data.name
            else config.data.forgetting_source(config.backbone),
        )
        for task in {task.name: task for task in tasks}.values()
    ]


def split_lengths(config: RunConfig, described: TaskConfig, role: Role) -> LengthStats:
    """Counted where the data is local, else from the dataset's yaml, else its limits."""
    own = described.name == config.data.name
    where = config.data.target_source() if own else config.data.forgetting_source(config.backbone)
    task = Task(**described.task_arguments())
    found = None
    if where.kind != "hub":
        found = counted_lengths(
            task,
            role,
            source=DataSource(**where.model_dump()),
            prompts=config.data.prompt_style,
            tokenizer=_tokenizer(config),
        )
    elif described.stats is not None:
        found = known_lengths(described.stats.model_dump(), role)
    return within_limits(found or limits_alone(task), task)


def steps_taken(config: RunConfig, train: LengthStats | None) -> str:
    """The training's optimizer steps, and what they follow from."""
    if train is None:
        return "none: nothing is trained"
    recipe = config.trainer
    batching = BatchPlan(
        epochs=recipe.num_epochs,
        batch_size=recipe.global_batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.global_batch_size,
        seed=config.seed,
    )
    epochs = f"{recipe.num_epochs} epochs" if recipe.num_epochs > 1 else "1 epoch"
    if train.examples is None:
        return (
            f"{batching.steps(1000):,} per 1,000 examples ({epochs}, batches of "
            f"{recipe.global_batch_size}); how many there are is not known before the data is here"
        )
    replay = config.peft.replay
    more = max(1, round(replay.ratio * train.examples)) if replay is not None else 0
    added = f" and up to {more:,} replayed" if more else ""
    return (
        f"{batching.steps(train.examples + more):,} ({epochs} of {train.examples:,} examples"
        f"{added}, batches of {recipe.global_batch_size}; {train.source})"
    )


def items_asked(config: RunConfig, tests: dict[str, LengthStats]) -> str:
    """How many items of each task are asked."""
    parts = []
    for name, lengths in tests.items():
        limit = config.evaluation.limit_of(name)
        asked = limit if lengths.examples is None else lengths.limited(limit).examples
        parts.append(f"{name} {asked:,}" if asked is not None else f"{name} all")
    return ", ".join(parts)


def _tokenizer(config: RunConfig) -> Path | None:
    folder = Path(resolve_path(config.backbone.name_or_path))
    return folder / "tokenizer.json" if folder.is_dir() else None
