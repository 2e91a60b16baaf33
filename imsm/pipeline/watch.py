"""Forgetting during training: scores on a small fixed set of items at every `trainer.save_steps`.

    watch_<task>  points of the task's first metric on `trainer.watch_items` examples of a forgetting test
    watch_target  the same of the target, on the training examples held out by `trainer.validation_size`
    retention     mean over the forgetting tests of watch_<task> / the original's points on the same examples

The examples are not from a test set where a task has training examples (MRPC, WebQ, ...); of other tasks they are from
the test set, which `training.json` records as "split". Training examples that replay or rehearsal reads are not
watched, unless the task has no others. A task that the original cannot answer (0 points) is left out of the retention.
"""

import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from imsm.config.schema import RunConfig
from imsm.data.batching import evaluation_order
from imsm.data.example import Example
from imsm.data.local_examples import chosen_indices
from imsm.data.replay import words_of
from imsm.data.sources import check_source, load_examples
from imsm.data.task import Role, Task, task_module
from imsm.data.tokenization import TokenizedExample
from imsm.evaluation.eval_set import EvalSet, tokenize_eval_set
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.scoring import score_predictions
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from imsm.pipeline.data import evaluated_tasks, max_positions, source_of, training_examples, warn
from imsm.pipeline.rehearsal import rehearsed_questions
from imsm.utils.errors import UserError
from imsm.utils.oom import AdaptiveBatchSize

_TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The watched items; call it for the current scores of ``model``, which is in eval mode.

    Args:
        eval_sets: the items of each forgetting test, and of the target as "target".
        splits: whether the items of a forgetting test are from "train" or "test".
        metrics: the module of each task's metric.
        original: points of the original model on each forgetting test.
        batch_size: prompts per forward pass.
    """

    model: SiameseForCausalLM
    tokenizer: PreTrainedTokenizerBase
    eval_sets: dict[str, EvalSet]
    splits: dict[str, Role]
    metrics: dict[str, str]
    original: dict[str, float]
    batch_size: int

    def __call__(self) -> dict[str, float]:
        """Return the metrics described in `imsm.pipeline.watch`."""
        scores = self.scores(self.model.stream)
        found = {f"watch_{name}": points for name, points in scores.items()}
        return found | {
            "retention": fmean(scores[name] / points for name, points in self.original.items() if points > 0)
        }

    def scores(self, stream: Stream, *names: str) -> dict[str, float]:
        """Return the points of a stream on the items of some tasks, by default all."""
        before, self.model.stream = self.model.stream, stream
        try:
            return {name: self._score(name) for name in names or self.eval_sets}
        finally:
            self.model.stream = before

    def record(self) -> dict[str, Any]:
        """Return the entry of `training.json`."""
        return {
            name: {"split": split, "items": len(self.eval_sets[name].examples), "original": self.original[name]}
            for name, split in self.splits.items()
        }

    def _score(self, name: str) -> float:
        eval_set = self.eval_sets[name]
        answers = [task_module(eval_set.task).extract(text) for text in self._respond(eval_set)]
        golds = [example.golds for example in eval_set.examples]
        groups = [example.group for example in eval_set.examples]
        totals, _ = score_predictions([self.metrics[name]], answers, golds, groups)
        return next(iter(totals.values()))

    def _respond(self, eval_set: EvalSet) -> list[str]:
        """Return the response to every prompt."""
        prompts = [prompt.prompt_ids for prompt in eval_set.prompts]
        task, pad_id = eval_set.task, self.tokenizer.pad_token_id

        def respond(indices: Sequence[int]) -> list[str]:
            batch = [prompts[index] for index in indices]
            session = DecodingSession(self.model, batch, pad_id=pad_id, max_new_tokens=task.max_new_tokens)
            limits: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "stop": task.stop}
            return [generation.text for generation in generate_responses(session, self.tokenizer, **limits)]

        adaptive = AdaptiveBatchSize(respond, what="prompts", key="evaluation.batch_size")
        responses: dict[int, str] = {}
        for indices in evaluation_order([len(ids) for ids in prompts], batch_size=self.batch_size):
            responses |= zip(indices, adaptive(indices), strict=True)
        return [responses[index] for index in range(len(prompts))]


def open_watch(
    config: RunConfig,
    model: SiameseForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenizedExample],
    *,
    processes: int,
) -> Watch | None:
    """Load the items that `trainer.watch_items` requests, and score the original on them; None if it is unset.

    ``held_out`` are examples of the target. ``model`` is left in eval mode.

    Raises:
        UserError: Several processes train, no forgetting test is evaluated, or the original answers none of them.
    """
    count = config.trainer.watch_items
    if count is None:
        return None
    given = f"trainer.watch_items={count}"
    if processes > 1:
        raise UserError(f"{given}: needs a training in one process, not {processes}; set engine=single, or omit it")
    tasks = _forgetting_tasks(config)
    items = watched_items(config, count)
    eval_sets = {name: _tokenize(config, tasks[name], examples, tokenizer) for name, (_, examples) in items.items()}
    if not tasks:
        raise UserError(f"{given}: no forgetting test is evaluated; add one to evaluation.tasks, or omit it")
    if held_out:
        ids = {example.id for example in held_out}
        own = [example for example in training_examples(config) if example.id in ids]
        eval_sets[_TARGET] = _tokenize(config, config.data, own, tokenizer)
    watch = Watch(
        model=model,
        tokenizer=tokenizer,
        eval_sets=eval_sets,
        splits={name: split for name, (split, _) in items.items()},
        metrics={name: _metric(config, task) for name, task in {**tasks, _TARGET: config.data}.items()},
        original={},
        batch_size=config.evaluation.fixed_batch_size,
    )
    model.eval()
    watch.original.update(watch.scores("original", *tasks))
    _check_original(watch.original, given)
    return watch


def watched_items(config: RunConfig, count: int) -> dict[str, tuple[Role, list[Example]]]:
    """Return the split and the ``count`` watched examples of each forgetting test.

    Training examples that replay or rehearsal reads are left out, unless these are all. Warnings are printed.
    """
    rehearsed = rehearsed_questions(config)
    items: dict[str, tuple[Role, list[Example]]] = {}
    for name, task in _forgetting_tasks(config).items():
        split, source = _split(config, task), source_of(config, task)
        load = partial(load_examples, task, split, source=source, prompt_style=config.data.prompt_style)
        is_read = rehearsed and split == "train"
        items[name] = (
            split,
            _not_rehearsed(load(limit=None), rehearsed, count, name) if is_read else load(limit=count),
        )
    return items


def _not_rehearsed(examples: list[Example], rehearsed: Set[str], count: int, name: str) -> list[Example]:
    kept = [example for example in examples if words_of(example.prompt) not in rehearsed]
    if not kept:
        warn(f"{name} (watched)", "the training reads all its training examples, so its score shows no forgetting.")
        kept = examples
    elif len(kept) < min(count, len(examples)):
        warn(f"{name} (watched)", f"only {len(kept)} of {count} items are left that the training does not read.")
    chosen = chosen_indices(len(kept), count)
    return [example for index, example in enumerate(kept) if index in chosen]


def _forgetting_tasks(config: RunConfig) -> dict[str, Task]:
    return {name: task for name, task in evaluated_tasks(config).items() if name != config.data.name}


def _check_original(original: dict[str, float], given: str) -> None:
    zero = [name for name, points in original.items() if points <= 0]
    if len(zero) == len(original):
        raise UserError(
            f"{given}: the original answers none of these examples ({', '.join(zero)}), so it cannot forget them; "
            "raise it, or evaluate other forgetting tests"
        )
    if zero:
        print(
            f"warning: {given}: the original has 0 points on {', '.join(zero)}; left out of the retention",
            file=sys.stderr,
        )


def _split(config: RunConfig, task: Task) -> Role:
    """Return "train" if the source has training examples of the task, else "test"."""
    if not task.splits.get("train"):
        return "test"
    try:
        check_source(task, source=source_of(config, task), roles=["train"])
    except UserError:
        return "test"
    return "train"


def _metric(config: RunConfig, task: Task) -> str:
    return config.metrics.get(task.metrics[0], task.metrics[0])


def _tokenize(config: RunConfig, task: Task, examples: list[Example], tokenizer: PreTrainedTokenizerBase) -> EvalSet:
    return tokenize_eval_set(
        task,
        examples,
        tokenizer=tokenizer,
        closed_vocabulary=config.backbone.closed_vocabulary,
        chat=config.data.chat_template,
        max_positions=max_positions(config),
    )
