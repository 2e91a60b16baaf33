"""A task's test items, read and tokenised once for all arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.data.sources import DataSource, load_examples
from imsm.data.task import Task
from imsm.data.tokenization import TokenizationStats, TokenizedExample, tokenize_prompts
from imsm.utils.hashing import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """A task's test items, ready to be asked."""

    task: Task
    examples: list[Example]
    prompts: list[TokenizedExample]
    tokenization_stats: TokenizationStats

    @property
    def fingerprint(self) -> str:
        """SHA-256 over prompts and accepted answers, and over how they are asked and scored."""
        task = self.task
        asked = [task.max_prompt_tokens, task.max_new_tokens, task.stop]
        scored = [task.module, task.metrics, task.paper_code_metrics]
        return hash_json([hash_examples(self.examples), asked, scored])


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
    """Load and tokenise a task's test items (a fixed random ``items`` of them; None: all).

    ``chat``: each prompt is a user turn in the tokenizer's template; its tokens are part of the
    answers' key.
    """
    examples = load_examples(task, "test", source=source, prompts=prompt_style, limit=limit)
    tokenised, report = tokenize_prompts(
        examples, tokenizer, max_prompt_tokens=task.max_prompt_tokens, closed_vocabulary=closed_vocabulary, chat=chat
    )
    return EvalSet(task=task, examples=examples, prompts=tokenised, tokenization_stats=report)


def hash_examples(examples: Sequence[Example]) -> str:
    """SHA-256 over ids, prompts and accepted answers."""
    return hash_json([[e.id, e.prompt, list(e.golds)] for e in examples])
