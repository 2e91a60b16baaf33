"""What a plan says of a run's data: how many examples, how long, how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.config.schema import RunConfig
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Role, Task
from imsm.models.backbones.loading import resolve_path
from imsm.training.trainer import BatchPlan
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CHARACTERS_A_TOKEN = 4
"""Of English text, roughly, in a vocabulary of 30 to 250 thousand."""


@dataclass(frozen=True, kw_only=True)
class LengthStats:
    """Of one split: number of examples (None: not known) and their lengths in tokens.

    ``mean`` is None where only the limits of the dataset's yaml are known.
    """

    examples: int | None
    mean: tuple[float, float] | None
    """Of prompt and answer."""
    longest: tuple[int, int]
    """Likewise; the answer with its end-of-text token."""
    source: str
    """How this is known, in words."""

    def limited(self, examples: int | None) -> LengthStats:
        """At most so many examples."""
        if examples is None or self.examples is None:
            return self
        kept = min(examples, self.examples)
        return LengthStats(examples=kept, mean=self.mean, longest=self.longest, source=self.source)


def known_lengths(facts: dict[str, Any], role: Role) -> LengthStats | None:
    """What a dataset's yaml says of a split; None if it says nothing."""
    split = facts.get(role)
    if split is None:
        return None
    (mean_prompt, longest_prompt), (mean_answer, longest_answer) = split["prompt"], split["answer"]
    return LengthStats(
        examples=split["examples"],
        mean=(mean_prompt, mean_answer),
        longest=(longest_prompt, longest_answer),
        source="known (the dataset's yaml)",
    )


def counted_lengths(
    task: Task, role: Role, *, source: DataSource, prompts: str, tokenizer: Path | None
) -> LengthStats | None:
    """Read a local split and measure it; None if it cannot be read without a library.

    Args:
        task: the dataset.
        role: which split.
        source: a mirror, a folder or the miniature.
        prompts: verbatim or corrected.
        tokenizer: a `tokenizer.json`; None: tokens are taken from characters.
    """
    try:
        examples = load_examples(task, role, source=source, prompts=prompts, limit=None, library=False)
    except UserError:
        return None
    texts = ([e.prompt for e in examples], [e.golds[0] for e in examples])
    if tokenizer is not None and tokenizer.is_file():
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(tokenizer))
        prompt, answer = (_counted(read, each) for each in texts)
        how = "counted"
    else:
        prompt, answer = ([_tokens(len(text)) for text in each] for each in texts)
        how = f"counted, {CHARACTERS_A_TOKEN} characters a token"
    return LengthStats(
        examples=len(examples),
        mean=(sum(prompt) / len(examples), sum(answer) / len(examples) + 1),
        longest=(round(max(prompt)), round(max(answer)) + 1),
        source=how,
    )


def limits_alone(task: Task) -> LengthStats:
    """What is left where nothing is known: no example is longer than the yaml allows."""
    return LengthStats(
        examples=None,
        mean=None,
        longest=(task.max_prompt_tokens, task.max_new_tokens),
        source="the limits in the dataset's yaml",
    )


def within_limits(lengths: LengthStats, task: Task) -> LengthStats:
    """Longer examples are cut or left out."""
    prompt, answer = lengths.longest
    longest = (min(prompt, task.max_prompt_tokens), min(answer, task.max_new_tokens))
    return LengthStats(examples=lengths.examples, mean=lengths.mean, longest=longest, source=lengths.source)


def _counted(tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [float(len(each)) for each in encoded]


def _tokens(characters: int) -> float:
    return characters / CHARACTERS_A_TOKEN


def judged(config: RunConfig) -> dict[str, Task]:
    """The tasks that are asked, by name; the target as the run has it."""
    return {name: config.data if name == config.data.name else task for name, task in config.tasks.items()}


def tasks_read(config: RunConfig) -> list[tuple[Task, DataSource]]:
    """Every dataset of which a run reads anything, once, and where it comes from."""
    trained: list[Task] = [config.data] if config.method.trainable else []
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


def split_lengths(config: RunConfig, task: Task, role: Role) -> LengthStats:
    """Counted where the data is local, else from the dataset's yaml, else its limits."""
    own = task.name == config.data.name
    where = config.data.target_source() if own else config.data.forgetting_source(config.backbone)
    found = None
    if where.kind != "hub":
        found = counted_lengths(
            task,
            role,
            source=where,
            prompts=config.data.prompt_style,
            tokenizer=_tokenizer(config),
        )
    elif task.stats is not None:
        found = known_lengths(task.stats.model_dump(), role)
    return within_limits(found or limits_alone(task), task)


def steps_taken(config: RunConfig, train: LengthStats | None) -> str:
    """The training's optimizer steps, and what they follow from."""
    if train is None:
        return "none: nothing is trained"
    recipe = config.trainer
    batching = BatchPlan(
        num_epochs=recipe.num_epochs,
        global_batch_size=recipe.global_batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.global_batch_size,
        seed=config.seed,
    )
    epochs = f"{recipe.num_epochs} epochs" if recipe.num_epochs > 1 else "1 epoch"
    if train.examples is None:
        return (
            f"{batching.num_steps(1000):,} per 1,000 examples ({epochs}, batches of "
            f"{recipe.global_batch_size}); how many there are is not known before the data is here"
        )
    replay = config.peft.replay
    more = max(1, round(replay.ratio * train.examples)) if replay is not None else 0
    added = f" and up to {more:,} replayed" if more else ""
    return (
        f"{batching.num_steps(train.examples + more):,} ({epochs} of {train.examples:,} examples"
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
