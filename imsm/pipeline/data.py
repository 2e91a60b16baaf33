"""Training examples and evaluation sets of a configuration."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from imsm.config.identity import parent_trainings, replay_identity
from imsm.config.schema import ReplayConfig, RunConfig
from imsm.data.chat_template import use_chat_template
from imsm.data.example import Example
from imsm.data.replay import Replay, sample_replay
from imsm.data.sources import DataSource, PromptStyle, check_source, load_examples
from imsm.data.task import HubDataset, Task
from imsm.data.tokenization import TokenizationStats, TokenizedExample, tokenize_training
from imsm.evaluation.eval_set import EvalSet, hash_examples, load_eval_set
from imsm.evaluation.scoring import score_predictions
from imsm.models.backbones.loading import load_tokenizer
from imsm.models.backbones.meta_model import find_config
from imsm.models.backbones.positions import position_limit
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError


def load_run_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Load the backbone's tokenizer, with its chat template if `data.chat_template` is set."""
    backbone = config.backbone
    tokenizer = load_tokenizer(
        name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
    )
    if config.data.chat_template:
        use_chat_template(tokenizer)
    return tokenizer


def evaluated_tasks(config: RunConfig) -> dict[str, Task]:
    """Return the evaluated tasks by name, the target with the overrides of `data`."""
    return {name: config.data if name == config.data.name else task for name, task in config.tasks.items()}


def source_of(config: RunConfig, task: Task) -> DataSource:
    """Return where a run reads a task from; the target has its own source."""
    is_target = task.name == config.data.name
    return config.data.target_source() if is_target else config.data.forgetting_source(config.backbone)


def training_examples(config: RunConfig) -> list[Example]:
    """Return the training examples of the target task."""
    data = config.data
    source, limit = data.target_source(), data.max_train_examples
    return load_examples(data, "train", source=source, prompt_style=data.prompt_style, limit=limit)


def replay_examples(config: RunConfig, *, target: int) -> Replay | None:
    """Return the replay examples for ``target`` training examples, or None without replay.

    Those of `peft.replay` are mixed into the training examples, those of `rehearsal` are its texts. Examples that
    occur in the target's own test set or in `exclude_tests` are excluded.
    """
    replay = config.peft.replay or config.rehearsal.replay()
    if replay is None:
        return None
    key = "rehearsal" if config.peft.replay is None else "peft.replay"
    return _sample_replay(
        replay,
        given=f"{key}.task={replay.task}",
        tasks=config.replay_tasks,
        replay_source=config.data.forgetting_source(config.backbone),
        target_task=config.data,
        target_source=config.data.target_source(),
        prompts=config.data.prompt_style,
        target=target,
    )


def run_examples(config: RunConfig) -> list[Example]:
    """Return the training examples of a run itself: target and replay."""
    examples = training_examples(config)
    replay = replay_examples(config, target=len(examples))
    return [*examples, *(replay.examples if replay else [])]


def all_training_examples(config: RunConfig) -> list[Example]:
    """Return all known training examples, parent runs included; those of an imported adapter are unknown.

    Raises:
        UserError: The training data of a parent run is not available.
    """
    # a test example that a parent run was trained on is contaminated, too
    parents = [_parent_examples(identity, config) for identity in parent_trainings(config)]
    own = [] if config.is_imported else run_examples(config)
    return [*chain.from_iterable(parents), *own]


def check_parent_data(config: RunConfig) -> None:
    """Check, before training, that local training data of the parent runs is still available.

    Reads no rows and does not access the Hub.

    Raises:
        UserError: The training data of a parent run is not available.
    """
    for identity in parent_trainings(config):
        data = identity["data"]
        try:
            check_source(_task_from_identity(data), source=DataSource(**data["source"]), roles=["train"])
        except UserError as error:
            raise UserError(
                f"{data['name']}: training data of a parent run is not available, but needed to check the test sets "
                f"for contamination: {error}"
            ) from error


def training_fingerprint(config: RunConfig) -> str:
    """Return the hash of the run's own training examples."""
    return hash_examples(run_examples(config))


def tokenized_training_set(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedExample], dict[str, Any]]:
    """Return the tokenized training examples, and statistics for `training.json`."""
    examples = training_examples(config)
    tokenized, stats = tokenize_task(config, config.data, examples, tokenizer)
    record: dict[str, Any] = asdict(stats)
    # the replayed examples of rehearsal are not in the batches
    if config.peft.replay is not None:
        replayed, record["replay"] = tokenized_replay(config, config.peft.replay.task, tokenizer, target=len(examples))
        tokenized += replayed
    return tokenized, record


def tokenized_replay(
    config: RunConfig, name: str, tokenizer: PreTrainedTokenizerBase, *, target: int
) -> tuple[list[TokenizedExample], dict[str, Any]]:
    """Return the tokenized replay examples, of the task ``name``, and statistics; warnings are printed."""
    replay, task = replay_examples(config, target=target), config.replay_tasks[name]
    assert replay is not None
    warn(f"{name} (replay)", replay.warning())
    tokenized, stats = tokenize_task(config, task, replay.examples, tokenizer)
    return tokenized, asdict(stats) | {"overlapping": replay.num_overlapping}


def load_eval_sets(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, EvalSet]:
    """Return the evaluation set of each task by name.

    Raises:
        UserError: A set is not available, or a metric cannot score its reference answers.
    """
    eval_sets = {}
    for name, task in evaluated_tasks(config).items():
        eval_sets[name] = load_eval_set(
            task,
            source=source_of(config, task),
            prompt_style=config.data.prompt_style,
            limit=config.evaluation.limit_of(name),
            tokenizer=tokenizer,
            closed_vocabulary=config.backbone.closed_vocabulary,
            chat=config.data.chat_template,
            max_positions=max_positions(config),
        )
        warn(f"{name} (test)", eval_sets[name].tokenization_stats.warning())
        # score the references once, so that an unsupported one is found before training
        golds = [example.golds for example in eval_sets[name].examples]
        metrics = [config.metrics.get(metric, metric) for metric in eval_sets[name].task.metrics]
        groups = [example.group for example in eval_sets[name].examples]
        score_predictions(metrics, [gold[0] for gold in golds], golds, groups)
    return eval_sets


def count_test_examples(config: RunConfig, name: str) -> int:
    """Return the number of examples in the complete test set of an evaluated task.

    Raises:
        UserError: The set is not available.
    """
    task = evaluated_tasks(config)[name]
    source = source_of(config, task)
    return len(load_examples(task, "test", source=source, prompt_style=config.data.prompt_style, limit=None))


def _parent_examples(identity: Mapping[str, Any], config: RunConfig) -> list[Example]:
    """Return the examples of a parent training of ``config``, replay included."""
    data, replay = identity["data"], replay_identity(identity)
    examples = load_examples(
        _task_from_identity(data),
        "train",
        source=DataSource(**data["source"]),
        prompt_style=data["prompt_style"],
        limit=data["max_train_examples"],
    )
    if replay is None:
        return examples
    # the parent's own test set was excluded from its replay, so the same sample needs the task here
    known_tasks = {config.data.name: config.data, **config.replay_tasks, **config.tasks}
    missing = [name for name in (replay["task"], *replay["exclude_tests"]) if name not in known_tasks]
    if missing:
        raise UserError(
            f"{data['name']}: a parent run replayed {replay['task']}, and the tests of {', '.join(missing)} are "
            "needed to sample the same examples; name them in evaluation.tasks"
        )
    sampled = _sample_replay(
        ReplayConfig(**{key: value for key, value in replay.items() if key != "source"}),
        given=f"{data['name']}: replay of {replay['task']}",
        tasks=known_tasks,
        replay_source=DataSource(**replay["source"]),
        target_task=known_tasks.get(data["name"]),
        target_source=DataSource(**data["source"]),
        prompts=data["prompt_style"],
        target=len(examples),
    )
    return [*examples, *sampled.examples]


def _task_from_identity(data: Mapping[str, Any]) -> Task:
    """Return the training task that an identity records; identities contain no metrics."""
    hub = data.get("hub")
    # model_construct skips validation: an identity has only the fields that affect training
    return Task.model_construct(
        name=data["name"],
        module=data["module"],
        hub=HubDataset(**hub) if hub else None,
        splits={"train": data["splits"]},
        metrics=[],
        max_prompt_tokens=data["max_prompt_tokens"],
        max_new_tokens=data["max_new_tokens"],
        stop=None,
    )


def _sample_replay(
    replay: ReplayConfig,
    *,
    given: str,
    tasks: Mapping[str, Task],
    replay_source: DataSource,
    target_task: Task | None,
    target_source: DataSource,
    prompts: PromptStyle,
    target: int,
) -> Replay:
    load = partial(load_examples, prompt_style=prompts, limit=None)
    tests = [load(tasks[name], "test", source=replay_source) for name in replay.exclude_tests]
    if target_task is not None and target_task.splits.get("test"):
        tests.append(load(target_task, "test", source=target_source))
    return sample_replay(
        load(tasks[replay.task], "train", source=replay_source),
        excluded=chain.from_iterable(tests),
        ratio=replay.ratio,
        num_target_examples=target,
        given=given,
    )


def max_positions(config: RunConfig) -> int | None:
    """Return the positions of the backbone that are left for tokens; None if they are unknown or not limited.

    Virtual tokens of prompt learning occupy positions, too.
    """
    backbone = config.backbone
    try:
        found, _ = find_config(
            path=backbone.name_or_path, revision=backbone.revision, architecture=backbone.architecture
        )
    except LookupError:
        return None
    limit = position_limit(found)
    arguments = config.peft.arguments()
    virtual = (arguments | (arguments.get("kwargs") or {})).get("num_virtual_tokens") or 0
    return None if limit is None else limit - (virtual if config.method.trainable else 0)


def training_limits(config: RunConfig, task: Task) -> tuple[int, int]:
    """Return the most tokens of a training prompt and of an answer: the recipe's, else the task's."""
    recipe = config.trainer
    return recipe.max_prompt_tokens or task.max_prompt_tokens, recipe.max_answer_tokens or task.max_new_tokens


def tokenize_task(
    config: RunConfig, task: Task, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedExample], TokenizationStats]:
    """Tokenize training examples of a task with the run's limits; a warning is printed."""
    max_prompt_tokens, max_answer_tokens = training_limits(config, task)
    tokenized, stats = tokenize_training(
        examples,
        tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        truncation=config.trainer.truncation,
        closed_vocabulary=config.backbone.closed_vocabulary,
        task_type=task.task_type,
        chat=config.data.chat_template,
        max_positions=max_positions(config),
    )
    warn(f"{task.name} (train)", stats.warning())
    return tokenized, stats


def warn(dataset: str, warning: str | None) -> None:
    """Print a warning about a dataset, if there is one."""
    if warning:
        print(escape_controls(f"warning: {dataset}: {warning}"), file=sys.stderr)
