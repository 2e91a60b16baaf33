"""Stage one: the examples that a run learns from and the tests that judge it, as tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.config import RunConfig
from imsm.data.sources import Source, load_examples
from imsm.data.task import Task
from imsm.data.tokenise import TokenisationReport, TokenisedExample, tokenise_training
from imsm.evaluation.judge import TestSet, examples_digest, load_test_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Tokenised training examples, what the length limits did to them, and what they were."""

    items: list[TokenisedExample]
    report: TokenisationReport
    fingerprint: str


def training_set(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> TrainingSet:
    """What the run's adapter and gate learn from."""
    task = Task(**config.data.task_arguments())
    examples = load_examples(
        task,
        "train",
        source=Source(**config.data.target_source().model_dump()),
        prompts=config.data.prompts,
        limit=config.data.train_limit,
    )
    items, report = tokenise_training(
        examples,
        tokenizer,
        max_prompt_tokens=task.max_prompt_tokens,
        max_answer_tokens=task.max_new_tokens,
        closed_vocabulary=config.backbone.closed_vocabulary,
    )
    _warn(f"{task.name} (train)", report.warning())
    return TrainingSet(items=items, report=report, fingerprint=examples_digest(examples))


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
    return tests


def _warn(what: str, warning: str | None) -> None:
    if warning:
        print(f"warning: {what}: {warning}", file=sys.stderr)
