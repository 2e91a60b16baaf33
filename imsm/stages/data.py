"""Stage one: the examples that a run learns from and the tests that judge it, as tokens."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from imsm.config import RunConfig, TaskConfig
from imsm.config import Source as SourceConfig
from imsm.data.replay import Replay, choose_replay
from imsm.data.sources import Source, load_examples
from imsm.data.task import Role, Task
from imsm.data.tokenise import TokenisationReport, TokenisedExample, tokenise_training
from imsm.evaluation.score import score_answers
from imsm.evaluation.test_set import TestSet, examples_digest, load_test_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example


def training_examples(config: RunConfig) -> list[Example]:
    """The target's examples that the run's adapter and gate learn from."""
    return load_examples(
        Task(**config.data.task_arguments()),
        "train",
        source=Source(**config.data.target_source().model_dump()),
        prompts=config.data.prompts,
        limit=config.data.train_limit,
    )


def replayed(config: RunConfig, *, target: int) -> Replay | None:
    """What is learned beside the target's so many examples; None if nothing is.

    Apart from the tests that `peft.replay` names, the target's own is kept apart.
    """
    replay = config.peft.replay
    if replay is None:
        return None
    elsewhere = config.data.forgetting_source(config.backbone)

    def load(described: TaskConfig, role: Role, source: SourceConfig) -> list[Example]:
        return load_examples(
            Task(**described.task_arguments()),
            role,
            source=Source(**source.model_dump()),
            prompts=config.data.prompts,
            limit=None,
        )

    tests = [load(config.replay_tasks[name], "test", elsewhere) for name in replay.apart_from]
    if config.data.splits.get("test"):
        tests.append(load(config.data, "test", config.data.target_source()))
    return choose_replay(
        load(config.replay_tasks[replay.task], "train", elsewhere),
        apart_from=chain.from_iterable(tests),
        share=replay.share,
        target=target,
    )


def learned_examples(config: RunConfig) -> list[Example]:
    """All that a run learns from, the target's examples and the replay's."""
    examples = training_examples(config)
    replay = replayed(config, target=len(examples))
    return [*examples, *(replay.examples if replay else [])]


def training_fingerprint(config: RunConfig) -> str:
    """Identifies the training examples."""
    return examples_digest(learned_examples(config))


def training_items(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenisedExample], dict[str, Any]]:
    """The training examples as tokens, and for the record what became of them on the way."""
    examples = training_examples(config)
    items, report = _tokenised(config, config.data, examples, tokenizer)
    record: dict[str, Any] = asdict(report)
    replay = replayed(config, target=len(examples))
    if config.peft.replay is not None and replay is not None:
        task = config.replay_tasks[config.peft.replay.task]
        _warn(f"{task.name} (replay)", replay.warning())
        more, report = _tokenised(config, task, replay.examples, tokenizer)
        items += more
        record["replay"] = asdict(report) | {"overlapping": replay.overlapping}
    return items, record


def _tokenised(
    config: RunConfig,
    task: TaskConfig,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[TokenisedExample], TokenisationReport]:
    items, report = tokenise_training(
        examples,
        tokenizer,
        max_prompt_tokens=task.max_prompt_tokens,
        max_answer_tokens=task.max_new_tokens,
        closed_vocabulary=config.backbone.closed_vocabulary,
        task_type=task.task_type,
        chat=config.data.chat_template,
    )
    _warn(f"{task.name} (train)", report.warning())
    return items, report


def test_sets(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, TestSet]:
    """The tasks to be judged, by name."""
    tests = {}
    for name, task in config.tasks.items():
        own = name == config.data.name
        described = config.data if own else task
        source = (
            config.data.target_source() if own else config.data.forgetting_source(config.backbone)
        )
        tests[name] = load_test_set(
            Task(**described.task_arguments()),
            source=Source(**source.model_dump()),
            prompts=config.data.prompts,
            items=config.evaluation.items_of(name),
            tokenizer=tokenizer,
            closed_vocabulary=config.backbone.closed_vocabulary,
            chat=config.data.chat_template,
        )
        _warn(f"{name} (test)", tests[name].report.warning())
        # an accepted answer that a metric cannot score would show only after the training
        golds = [example.golds for example in tests[name].examples]
        metrics = [config.metrics.get(metric, metric) for metric in tests[name].task.metrics]
        score_answers(metrics, [gold[0] for gold in golds], golds)
    return tests


def _warn(what: str, warning: str | None) -> None:
    if warning:
        print(f"warning: {what}: {warning}", file=sys.stderr)
