"""Stage one: the examples that a run learns from and the tests that judge it, as tokens."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from imsm.config.identity import parent_trainings
from imsm.config.schema import ReplayConfig, RunConfig, TaskConfig
from imsm.config.schema import Source as SourceConfig
from imsm.data.replay import Replay, sample_replay
from imsm.data.sources import DataSource, Prompts, check_source, load_examples
from imsm.data.task import Role, Task
from imsm.data.tokenization import TokenizationStats, TokenizedExample, tokenize_training
from imsm.evaluation.eval_set import EvalSet, hash_examples, load_eval_set
from imsm.evaluation.scoring import score_predictions
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example


def training_examples(config: RunConfig) -> list[Example]:
    """The target's examples that the run's adapter and gate learn from."""
    return load_examples(
        Task(**config.data.task_arguments()),
        "train",
        source=DataSource(**config.data.target_source().model_dump()),
        prompts=config.data.prompt_style,
        limit=config.data.max_train_examples,
    )


def replay_examples(config: RunConfig, *, target: int) -> Replay | None:
    """What is learned beside the target's so many examples; None if nothing is.

    Apart from the tests that `peft.replay` names, the target's own is kept apart.
    """
    if config.peft.replay is None:
        return None
    return _replay(
        config.peft.replay,
        tasks=config.replay_tasks,
        elsewhere=config.data.forgetting_source(config.backbone),
        own=(config.data, config.data.target_source()),
        prompts=config.data.prompt_style,
        target=target,
    )


def run_examples(config: RunConfig) -> list[Example]:
    """What a run itself learns from, the target's examples and the replay's."""
    examples = training_examples(config)
    replay = replay_examples(config, target=len(examples))
    return [*examples, *(replay.examples if replay else [])]


def all_training_examples(config: RunConfig) -> list[Example]:
    """All that a run's model has learned from: in the trainings that it goes on from, in its own.

    Raises:
        UserError: what one of them learned from is not there any more.
    """
    before = [_learned_in(identity, config) for identity in parent_trainings(config)]
    return [*chain.from_iterable(before), *run_examples(config)]


def check_parent_data(config: RunConfig) -> None:
    """Look, before a run's own training, whether there is what was learned before it.

    No row is read, so that what lies on the hub is not looked for.

    Raises:
        UserError: it is not there.
    """
    for identity in parent_trainings(config):
        data = identity["data"]
        try:
            check_source(_task_of(data), source=DataSource(**data["source"]), roles=["train"])
        except UserError as error:
            raise UserError(
                f"{data['name']}: the adapter learned from it before, so a test's questions are "
                f"looked for in it, and it is not there any more: {error}"
            ) from error


def _learned_in(identity: Mapping[str, Any], config: RunConfig) -> list[Example]:
    """The examples of a training that ``config`` goes on from, which has its replay too."""
    data, replay = identity["data"], identity["peft"].get("replay")
    source = DataSource(**data["source"])
    examples = load_examples(
        _task_of(data), "train", source=source, prompts=data["prompt_style"], limit=data["max_train_examples"]
    )
    if replay is None:
        return examples
    known = {config.data.name: config.data, **config.replay_tasks, **config.tasks}
    chosen = _replay(
        ReplayConfig(**{key: value for key, value in replay.items() if key != "source"}),
        tasks=config.replay_tasks,
        elsewhere=SourceConfig(**replay["source"]),
        own=(known.get(data["name"]), SourceConfig(**data["source"])),
        prompts=data["prompt_style"],
        target=len(examples),
    )
    return [*examples, *chosen.examples]


def _task_of(data: Mapping[str, Any]) -> Task:
    """The dataset that an identity says was learned; how its answers are judged is not said."""
    return Task(
        name=data["name"],
        module=data["module"],
        hub=data.get("hub"),
        splits={"train": data["splits"]},
        metrics=[],
        max_prompt_tokens=data["max_prompt_tokens"],
        max_new_tokens=data["max_new_tokens"],
        stop=None,
    )


def _replay(
    replay: ReplayConfig,
    *,
    tasks: Mapping[str, TaskConfig],
    elsewhere: SourceConfig,
    own: tuple[TaskConfig | None, SourceConfig],
    prompts: Prompts,
    target: int,
) -> Replay:
    """The questions that are learned beside a target, which is described by ``own``."""

    def load(described: TaskConfig, role: Role, source: SourceConfig) -> list[Example]:
        return load_examples(
            Task(**described.task_arguments()),
            role,
            source=DataSource(**source.model_dump()),
            prompts=prompts,
            limit=None,
        )

    tests = [load(tasks[name], "test", elsewhere) for name in replay.exclude_tests]
    described, source = own
    if described is not None and described.splits.get("test"):
        tests.append(load(described, "test", source))
    return sample_replay(
        load(tasks[replay.task], "train", elsewhere),
        apart_from=chain.from_iterable(tests),
        share=replay.ratio,
        target=target,
    )


def training_fingerprint(config: RunConfig) -> str:
    """Identifies the training examples."""
    return hash_examples(run_examples(config))


def tokenized_training_set(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedExample], dict[str, Any]]:
    """The training examples as tokens, and for the record what became of them on the way."""
    examples = training_examples(config)
    items, report = _tokenised(config, config.data, examples, tokenizer)
    record: dict[str, Any] = asdict(report)
    replay = replay_examples(config, target=len(examples))
    if config.peft.replay is not None and replay is not None:
        task = config.replay_tasks[config.peft.replay.task]
        _warn(f"{task.name} (replay)", replay.warning())
        more, report = _tokenised(config, task, replay.examples, tokenizer)
        items += more
        record["replay"] = asdict(report) | {"overlapping": replay.overlapping}
    return items, record


def _tokenised(
    config: RunConfig, task: TaskConfig, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedExample], TokenizationStats]:
    items, report = tokenize_training(
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


def eval_sets(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, EvalSet]:
    """The tasks to be judged, by name."""
    tests = {}
    for name, task in config.tasks.items():
        own = name == config.data.name
        described = config.data if own else task
        source = config.data.target_source() if own else config.data.forgetting_source(config.backbone)
        tests[name] = load_eval_set(
            Task(**described.task_arguments()),
            source=DataSource(**source.model_dump()),
            prompt_style=config.data.prompt_style,
            limit=config.evaluation.limit_of(name),
            tokenizer=tokenizer,
            closed_vocabulary=config.backbone.closed_vocabulary,
            chat=config.data.chat_template,
        )
        _warn(f"{name} (test)", tests[name].report.warning())
        # an accepted answer that a metric cannot score would show only after the training
        golds = [example.golds for example in tests[name].examples]
        metrics = [config.metrics.get(metric, metric) for metric in tests[name].task.metrics]
        score_predictions(metrics, [gold[0] for gold in golds], golds)
    return tests


def _warn(what: str, warning: str | None) -> None:
    if warning:
        print(f"warning: {what}: {warning}", file=sys.stderr)
