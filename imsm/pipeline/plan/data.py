"""Number, length and training steps of a run's examples, known before its data is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from imsm.config.schema import RunConfig
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Role, Task
from imsm.models.backbones.loading import resolve_path
from imsm.pipeline.data import evaluated_tasks, source_of, training_limits
from imsm.pipeline.engine import batch_plan_of
from imsm.utils.errors import UserError

CHARACTERS_PER_TOKEN = 4
"""Average for English text with a vocabulary of 30,000 to 250,000 tokens."""


@dataclass(frozen=True, kw_only=True)
class LengthStats:
    """Number of examples of a split and their lengths in tokens."""

    examples: int | None  # number of examples; None if unknown
    mean: tuple[float, float] | None  # mean length of prompt and answer; None if only limits are known
    longest: tuple[int, int]  # longest prompt and answer; the answer includes its end-of-text token
    source: str  # how the numbers are known

    def limited(self, examples: int | None) -> LengthStats:
        """Return the statistics of at most ``examples`` examples."""
        if examples is None or self.examples is None:
            return self
        return replace(self, examples=min(examples, self.examples))


def known_lengths(stats: dict[str, Any], role: Role) -> LengthStats | None:
    """Return the statistics of a split from the dataset's yaml, or None if it has none."""
    split = stats.get(role)
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
    """Measure a local split; return None if it cannot be read without the `datasets` library.

    ``tokenizer`` is a `tokenizer.json`; None to estimate tokens from characters.
    """
    try:
        # importing `datasets` takes seconds, and a plan is to be printed at once
        examples = load_examples(task, role, source=source, prompt_style=prompts, limit=None, use_datasets=False)
    except UserError:
        return None
    prompts_and_answers = ([e.prompt for e in examples], [e.golds[0] for e in examples])
    if tokenizer is not None and tokenizer.is_file():
        loaded = Tokenizer.from_file(str(tokenizer))
        prompt, answer = (_count_tokens(loaded, texts) for texts in prompts_and_answers)
        basis = "counted"
    else:
        prompt, answer = ([len(text) / CHARACTERS_PER_TOKEN for text in texts] for texts in prompts_and_answers)
        basis = f"counted, {CHARACTERS_PER_TOKEN} characters per token"
    return LengthStats(
        examples=len(examples),
        mean=(sum(prompt) / len(examples), sum(answer) / len(examples) + 1),
        longest=(round(max(prompt)), round(max(answer)) + 1),
        source=basis,
    )


def limits_only(task: Task) -> LengthStats:
    """Return the length limits of the dataset's yaml, used if nothing else is known."""
    return LengthStats(
        examples=None,
        mean=None,
        longest=(task.max_prompt_tokens, task.max_new_tokens),
        source="the limits in the dataset's yaml",
    )


def within_limits(lengths: LengthStats, task: Task) -> LengthStats:
    """Apply the task's limits: longer examples are truncated or excluded."""
    prompt, answer = lengths.longest
    return replace(lengths, longest=(min(prompt, task.max_prompt_tokens), min(answer, task.max_new_tokens)))


def tasks_read(config: RunConfig) -> list[tuple[Task, DataSource]]:
    """Return every dataset that a run reads, once, with its source."""
    training: list[Task] = [config.data] if config.method.trainable else []
    tasks = (*training, *evaluated_tasks(config).values(), *config.replay_tasks.values())
    return [(task, source_of(config, task)) for task in {task.name: task for task in tasks}.values()]


def split_lengths(config: RunConfig, task: Task, role: Role) -> LengthStats:
    """Return the lengths of a split: counted if local, else from the dataset's yaml, else its limits."""
    source = source_of(config, task)
    lengths = None
    if source.kind != "hub":
        # a Hub id is not a folder: its tokenizer would have to be downloaded
        model_folder = Path(resolve_path(config.backbone.name_or_path))
        lengths = counted_lengths(
            task,
            role,
            source=source,
            prompts=config.data.prompt_style,
            tokenizer=model_folder / "tokenizer.json" if model_folder.is_dir() else None,
        )
    elif task.stats is not None:
        lengths = known_lengths(task.stats.model_dump(), role)
    if role == "train":
        prompt, answer = training_limits(config, task)
        task = task.model_copy(update={"max_prompt_tokens": prompt, "max_new_tokens": answer})
    return within_limits(lengths or limits_only(task), task)


def format_steps(config: RunConfig, train: LengthStats | None) -> str:
    """Return the number of optimizer steps and its basis as text."""
    if train is None:
        return "none: nothing is trained"
    recipe = config.trainer
    batch_plan = batch_plan_of(config, processes=1)
    epochs = f"{recipe.num_epochs} epochs" if recipe.num_epochs > 1 else "1 epoch"
    if train.examples is None:
        return (
            f"{batch_plan.num_steps(1000):,} per 1,000 examples ({epochs}, batches of {recipe.global_batch_size}); "
            "the number of examples is unknown until the data is available"
        )
    replay = config.peft.replay
    replayed = max(1, round(replay.ratio * train.examples)) if replay is not None else 0
    added = f" and up to {replayed:,} replayed" if replayed else ""
    return (
        f"{batch_plan.num_steps(train.examples + replayed):,} ({epochs} of {train.examples:,} examples"
        f"{added}, batches of {recipe.global_batch_size}; {train.source})"
    )


def format_evaluation(config: RunConfig, tests: dict[str, LengthStats]) -> str:
    """Return the number of evaluated examples of each task as text."""
    parts = []
    for name, lengths in tests.items():
        limit = config.evaluation.limit_of(name)
        count = limit if lengths.examples is None else lengths.limited(limit).examples
        parts.append(f"{name} {count:,}" if count is not None else f"{name} all")
    return ", ".join(parts)


def _count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [float(len(each)) for each in encoded]
