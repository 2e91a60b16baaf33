"""Evaluation sets: the tokenized test examples of a task, with their fingerprint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from transformers import PreTrainedTokenizerBase

from imsm.data.example import Example
from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Task
from imsm.data.tokenization import TokenizationStats, TokenizedExample, encode_answers, tokenize_prompts
from imsm.utils.hashing import hash_chunks, hash_json

MAX_REFERENCES = 8
"""Number of an example's accepted answers, from the first, whose likelihood is computed."""


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
    max_positions: int | None = None,
) -> EvalSet:
    """Load and tokenize the test examples of a task.

    ``prompt_style`` is "paper" or "corrected". ``limit`` examples are drawn with a fixed seed; None: all. The other
    arguments are those of `tokenize_eval_set`.
    """
    examples = load_examples(task, "test", source=source, prompt_style=prompt_style, limit=limit)
    return tokenize_eval_set(
        task,
        examples,
        tokenizer=tokenizer,
        closed_vocabulary=closed_vocabulary,
        chat=chat,
        max_positions=max_positions,
    )


def tokenize_eval_set(
    task: Task,
    examples: list[Example],
    *,
    tokenizer: PreTrainedTokenizerBase,
    closed_vocabulary: bool,
    chat: bool,
    max_positions: int | None = None,
) -> EvalSet:
    """Tokenize examples of a task.

    ``closed_vocabulary`` raises an error for unknown words. ``chat`` formats each prompt as a user turn
    of the tokenizer's chat template. ``max_positions`` are those of the backbone.
    """
    prompts, stats = tokenize_prompts(
        examples,
        tokenizer,
        max_prompt_tokens=task.max_prompt_tokens,
        max_new_tokens=_longest_continuation(task, examples, tokenizer),
        max_positions=max_positions,
        closed_vocabulary=closed_vocabulary,
        chat=chat,
    )
    return EvalSet(task=task, examples=examples, prompts=prompts, tokenization_stats=stats)


def _longest_continuation(task: Task, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that follow a prompt: of a response, or of an accepted answer."""
    limit = task.max_new_tokens
    # a token has at least one byte, so that shorter answers need not be encoded
    long_answers = [gold for e in examples for gold in e.golds[:MAX_REFERENCES] if len(gold.encode()) >= limit]
    return max([limit, *map(len, encode_answers(tokenizer, long_answers))])


def hash_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of ids, prompts, accepted answers and messages: `hash_json` of a list, as a stream."""
    rows = ([e.id, e.prompt, list(e.golds), *([e.turns] if e.turns else [])] for e in examples)
    texts = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    commas = chain([""], repeat(","))
    chunks = (f"{comma}{text}".encode() for comma, text in zip(commas, texts, strict=False))
    return hash_chunks(chain([b"["], chunks, [b"]"]))
