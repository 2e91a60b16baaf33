"""Evaluation sets: the tokenized test examples of a task, with their fingerprint."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from imsm.data.example import Example
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Task
from imsm.data.tokenization import TokenizationStats, TokenizedExample, tokenize_prompts
from imsm.utils.hashing import hash_json


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The test examples of a task and their tokenized prompts."""

    task: Task
    examples: list[Example]
    prompts: list[TokenizedExample]
    tokenization_stats: TokenizationStats

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the examples, the generation limits, the extraction module and the metrics."""
        task = self.task
        generation = [task.max_prompt_tokens, task.max_new_tokens, task.stop]
        scoring = [task.module, task.metrics, task.paper_code_metrics]
        return hash_json([hash_examples(self.examples), generation, scoring])


def load_eval_set(
    task: Task,
    *,
    source: DataSource,
    prompt_style: str,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase,
    closed_vocabulary: bool,
    chat: bool,
) -> EvalSet:
    """Load and tokenize the test examples of a task.

    ``prompt_style`` is "paper" or "corrected". ``limit`` examples are drawn with a fixed seed; None: all.
    ``closed_vocabulary`` raises an error for unknown words. ``chat`` formats each prompt as a user turn
    of the tokenizer's chat template.
    """
    examples = load_examples(task, "test", source=source, prompt_style=prompt_style, limit=limit)
    prompts, stats = tokenize_prompts(
        examples, tokenizer, max_prompt_tokens=task.max_prompt_tokens, closed_vocabulary=closed_vocabulary, chat=chat
    )
    return EvalSet(task=task, examples=examples, prompts=prompts, tokenization_stats=stats)


def hash_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of ids, prompts and accepted answers."""
    return hash_json([[e.id, e.prompt, list(e.golds)] for e in examples])
