"""Stage one: the examples that a run learns from and the tests that judge it, as tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from imsm.config import RunConfig
from imsm.data.sources import Source, load_examples
from imsm.data.task import Task
from imsm.data.tokenise import TokenisationReport, TokenisedExample, tokenise_training
from imsm.evaluation.judge import TestSet, examples_digest, load_test_set
from imsm.evaluation.score import score_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example


def training_examples(config: RunConfig) -> list[Example]:
    """What the run's adapter and gate learn from."""
    return load_examples(
        Task(**config.data.task_arguments()),
        "train",
        source=Source(**config.data.target_source().model_dump()),
        prompts=config.data.prompts,
        limit=config.data.train_limit,
    )


def training_fingerprint(config: RunConfig) -> str:
    """Identifies the training examples."""
    return examples_digest(training_examples(config))


def training_items(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenisedExample], TokenisationReport]:
    """The training examples as tokens, and what the length limits did to them."""
    items, report = tokenise_training(
        training_examples(config),
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_answer_tokens=config.data.max_new_tokens,
        closed_vocabulary=config.backbone.closed_vocabulary,
    )
    _warn(f"{config.data.name} (train)", report.warning())
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
