"""Number, length and training steps of a run's examples, known before its data is downloaded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from imsm.config.schema import RunConfig
from imsm.data.example import Example
from imsm.data.prompts import read_prompts
from imsm.data.sources import DataSource, iter_examples, load_examples
from imsm.data.task import Role, Task
from imsm.models.backbones.loading import resolve_path
from imsm.pipeline.data import evaluated_tasks, max_positions, source_of, training_limits
from imsm.pipeline.engine import batch_plan_of
from imsm.utils.errors import UserError, first_line

CHARACTERS_PER_TOKEN = 4
"""Average for English text with a vocabulary of 30,000 to 250,000 tokens."""
SAMPLE_SEED = "imsm.plan"
_SAMPLE_SIZE, _NUM_LONGEST = 10_000, 100


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
    task: Task, role: Role, *, source: DataSource, prompts: str, tokenizer: Path | None, limit: int | None = None
) -> LengthStats | None:
    """Measure a local split; return None if it cannot be read without the `datasets` library.

    ``tokenizer`` is a `tokenizer.json`; None to estimate tokens from characters. ``limit`` measures that many
    examples, those that a run uses. The number of examples is exact; of more than 10,000 examples, the mean length
    is that of a sample, and the maximum that of the sample and the examples with the most characters.
    """
    options: dict[str, Any] = {"source": source, "prompt_style": prompts, "use_datasets": False}
    try:
        # importing `datasets` takes seconds, and a plan is to be printed at once
        if limit is not None:
            found: Iterable[Example] = load_examples(task, role, **options, limit=limit)
        else:
            found = iter_examples(task, role, **options)
        total, sample, longest = _sample(found)
    except UserError:
        return None
    examples = sample + longest
    prompts_and_answers = ([e.prompt for e in examples], [e.golds[0] for e in examples])
    if tokenizer is not None and tokenizer.is_file():
        loaded = _load_tokenizer(tokenizer)
        prompt, answer = (_count_tokens(loaded, texts) for texts in prompts_and_answers)
        basis = "counted"
    else:
        prompt, answer = ([len(text) / CHARACTERS_PER_TOKEN for text in texts] for texts in prompts_and_answers)
        basis = f"counted, {CHARACTERS_PER_TOKEN} characters per token"
    if total > len(sample):
        basis += f"; lengths estimated from {len(sample):,} examples"
    return LengthStats(
        examples=total,
        mean=(fmean(prompt[: len(sample)]), fmean(answer[: len(sample)]) + 1),
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
        is_train = role == "train"
        lengths = counted_lengths(
            task,
            role,
            source=source,
            prompts=config.data.prompt_style,
            tokenizer=model_folder / "tokenizer.json" if model_folder.is_dir() else None,
            limit=config.data.max_train_examples if is_train else config.evaluation.limit_of(task.name),
        )
    elif task.stats is not None:
        lengths = known_lengths(task.stats.model_dump(), role)
    if role == "train":
        prompt, answer = training_limits(config, task)
        task = task.model_copy(update={"max_prompt_tokens": prompt, "max_new_tokens": answer})
    positions = max_positions(config)
    if positions is not None:
        task = task.model_copy(update={"max_prompt_tokens": min(task.max_prompt_tokens, positions)})
    return within_limits(lengths or limits_only(task), task)


def rehearsal_lengths(config: RunConfig, train: LengthStats) -> LengthStats | None:
    """Return number and lengths of rehearsal's texts, of which none is taken to be dropped; None without rehearsal."""
    rehearsal = config.rehearsal
    if rehearsal.source == "none" or not rehearsal.weight:
        return None
    if rehearsal.task is not None and rehearsal.ratio is not None:
        lengths = split_lengths(config, config.replay_tasks[rehearsal.task], "train")
        return lengths.limited(None if train.examples is None else max(1, round(rehearsal.ratio * train.examples)))
    mean, longest = 1.0, 1
    if rehearsal.prompts in config.replay_tasks:
        lengths = split_lengths(config, config.replay_tasks[rehearsal.prompts], "train")
        mean, longest = (lengths.mean or lengths.longest)[0], lengths.longest[0]
    elif config.prompts_hash is not None and rehearsal.prompts is not None:
        prompts = read_prompts(Path(rehearsal.prompts), given=f"rehearsal.prompts={rehearsal.prompts}")
        tokens = [len(prompt) / CHARACTERS_PER_TOKEN for prompt in prompts]
        mean, longest = fmean(tokens), round(max(tokens))
    assert rehearsal.max_tokens is not None
    # the cut is in the middle on average
    half = rehearsal.max_tokens / 2
    return LengthStats(
        examples=rehearsal.num_texts,
        mean=(mean + half, half),
        longest=(longest, rehearsal.max_tokens),
        source="rehearsal.max_tokens",
    )


def position_notes(config: RunConfig, tests: dict[str, LengthStats]) -> list[str]:
    """Return a note for each test set whose longest prompt and response exceed the backbone's positions."""
    positions = max_positions(config)
    tasks = evaluated_tasks(config)
    return [
        f"{name}: a prompt of {lengths.longest[0]} and {tasks[name].max_new_tokens} new tokens exceed the backbone's "
        f"{positions} positions, so its context is truncated, or the run ends with an error if it has none; "
        f"data.max_prompt_tokens={max(0, positions - tasks[name].max_new_tokens)} would fit"
        for name, lengths in tests.items()
        if positions is not None and lengths.mean and lengths.longest[0] + tasks[name].max_new_tokens > positions
    ]


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
        f"{added}, batches of {recipe.global_batch_size}; {train.source}){_format_texts(config, train)}"
    )


def _format_texts(config: RunConfig, train: LengthStats) -> str:
    texts = rehearsal_lengths(config, train)
    if texts is None:
        return ""
    known = "" if texts.examples is None else f" of {texts.examples:,}"
    return f", each with {config.rehearsal.batch_size}{known} texts (rehearsal={config.rehearsal.name})"


def format_evaluation(config: RunConfig, tests: dict[str, LengthStats]) -> str:
    """Return the number of evaluated examples of each task as text."""
    parts = []
    for name, lengths in tests.items():
        limit = config.evaluation.limit_of(name)
        count = limit if lengths.examples is None else lengths.limited(limit).examples
        parts.append(f"{name} {count:,}" if count is not None else f"{name} all")
    return ", ".join(parts)


def _sample(examples: Iterable[Example]) -> tuple[int, list[Example], list[Example]]:
    """Return the number of examples, a sample, and further ones with the longest prompts and answers."""
    generator, sample, total = random.Random(SAMPLE_SEED), list[Example](), 0
    longest_prompts, longest_answers = list[tuple[int, int, Example]](), list[tuple[int, int, Example]]()
    for number, example in enumerate(examples):
        total = number + 1
        _keep_longest(longest_prompts, (len(example.prompt), number, example))
        _keep_longest(longest_answers, (len(example.golds[0]), number, example))
        if total <= _SAMPLE_SIZE:
            sample.append(example)
        # every example is in the sample with the same probability
        elif (place := generator.randrange(total)) < _SAMPLE_SIZE:
            sample[place] = example
    if not total:
        raise UserError("no example")
    complete = total == len(sample)
    return total, sample, [] if complete else [e for *_, e in (*longest_prompts, *longest_answers)]


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    # of no other type: tokenizers raises Exception itself
    except Exception as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}); copy or download the file again") from error


def _keep_longest(heap: list[tuple[int, int, Example]], entry: tuple[int, int, Example]) -> None:
    if len(heap) < _NUM_LONGEST:
        heappush(heap, entry)
    elif entry[0] > heap[0][0]:
        heapreplace(heap, entry)


def _count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [float(len(each)) for each in encoded]
