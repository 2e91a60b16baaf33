"""Tokenize examples: prompts and answers separately; by default only the context is truncated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.data.chat_template import encode_chat
from imsm.data.example import Example
from imsm.utils.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

NUM_NAMED_WORDS = 8
"""Most unknown words named in the error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """One example as token ids.

    ``prompt_ids`` include the tokenizer's leading special tokens (BOS). ``answer_ids`` end in EOS and
    are the training targets; they are empty in evaluation. ``task_type`` is as in `Task`.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    task_type: int = 0


@dataclass(slots=True, kw_only=True)
class TokenizationStats:
    """Number of examples that the length limits affect.

    Attributes:
        examples: All examples.
        truncated: Kept, with a context truncated from the left.
        cut: Kept, with the end of prompt or answer cut off (``truncation="right"``).
        too_long: Prompts that no truncation makes fit: dropped in training, kept in evaluation.
        long_answers: Dropped in training because answer and EOS exceed the limit.
        dropped: Dropped in training for either reason.
    """

    examples: int = 0
    truncated: int = 0
    too_long: int = 0
    long_answers: int = 0
    dropped: int = 0
    cut: int = 0

    def warning(self) -> str | None:
        """Return a warning, or None if no example was affected."""
        parts = []
        if self.truncated:
            parts.append(f"{self.truncated} had their context truncated from the left")
        if self.cut:
            parts.append(f"{self.cut} had the end of their prompt or answer cut off")
        if self.too_long:
            handling = "dropped" if self.dropped else "kept in full"
            parts.append(f"{self.too_long} with a prompt too long to truncate were {handling}")
        if self.long_answers:
            parts.append(f"{self.long_answers} with too long an answer were dropped")
        return f"Of {self.examples} examples {', '.join(parts)}." if parts else None


def tokenize_training(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    closed_vocabulary: bool,
    task_type: int = 0,
    chat: bool = False,
    truncation: str = "context",
    max_positions: int | None = None,
) -> tuple[list[TokenizedExample], TokenizationStats]:
    """Tokenize prompts with special tokens, and answers (golds[0]) with EOS.

    A prompt over ``max_prompt_tokens`` has its context truncated from the left, or is dropped if
    that is not enough. An answer over ``max_answer_tokens`` (with EOS) is dropped. With
    ``truncation="right"`` the end of both is cut off instead, the question included, as in the
    paper's code. With ``chat`` the prompt is a user turn, whose template counts as part of it.
    ``max_positions`` limits prompt and answer together; None for no limit.

    Raises:
        UserError: A word outside a closed vocabulary, a tokenizer without EOS, or no example left.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError("backbone: its tokenizer has no end-of-sequence token, so no answer could end")
    answers = [example.golds[0] for example in examples]
    if closed_vocabulary:
        _reject_unknown_words(examples, [example.prompt for example in examples], tokenizer)
        _reject_unknown_words(examples, answers, tokenizer)
    # prompt and answer are tokenized apart, so that the prompt's ids are those of evaluation
    cut = truncation == "right"
    answers_ids = [(*answer, int(eos)) for answer in encode_answers(tokenizer, answers)]
    room = [_room(max_positions, min(len(answer), max_answer_tokens)) for answer in answers_ids]
    limits = [max_prompt_tokens if free is None else min(max_prompt_tokens, free) for free in room]
    prompt_ids, stats = _encode_truncated(examples, tokenizer, limits=None if cut else limits, chat=chat)
    kept = []
    for example, prompt, answer_ids, limit in zip(examples, prompt_ids, answers_ids, limits, strict=True):
        if cut and (len(prompt) > limit or len(answer_ids) > max_answer_tokens):
            stats.cut += 1
            prompt, answer_ids = prompt[:limit], (*answer_ids[:-1][: max_answer_tokens - 1], int(eos))
        # a truncated answer would be a wrong target
        if len(answer_ids) > max_answer_tokens:
            stats.long_answers += 1
        if len(prompt) > limit or len(answer_ids) > max_answer_tokens:
            stats.dropped += 1
            continue
        kept.append(TokenizedExample(id=example.id, prompt_ids=prompt, answer_ids=answer_ids, task_type=task_type))
    if not kept:
        raise UserError(
            f"data.max_prompt_tokens={max_prompt_tokens}, data.max_new_tokens={max_answer_tokens}: no training "
            f"example is left ({stats.warning() or 'none was given'}); raise the limits"
        )
    return kept, stats


def tokenize_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    closed_vocabulary: bool,
    chat: bool = False,
    max_new_tokens: int = 0,
    max_positions: int | None = None,
) -> tuple[list[TokenizedExample], TokenizationStats]:
    """Tokenize prompts for evaluation; those that no truncation makes fit are kept in full.

    ``max_positions`` limits the prompt and the ``max_new_tokens`` after it; None for no limit.

    Raises:
        UserError: A word outside a closed vocabulary, or a prompt that exceeds the positions.
    """
    if closed_vocabulary:
        _reject_unknown_words(examples, [example.prompt for example in examples], tokenizer)
    room = _room(max_positions, max_new_tokens)
    limit = max_prompt_tokens if room is None else min(max_prompt_tokens, room)
    prompt_ids, stats = _encode_truncated(examples, tokenizer, limits=[limit] * len(examples), chat=chat)
    for example, ids in zip(examples, prompt_ids, strict=True):
        if room is not None and len(ids) > room:
            raise UserError(
                f"data.max_prompt_tokens={max_prompt_tokens}: {example.id} has {len(ids)} prompt tokens, which no "
                f"truncation of its context makes fit; with {max_new_tokens} new tokens the backbone's positions "
                f"allow data.max_prompt_tokens={max(room, 0)}; set fewer data.max_new_tokens, shorten the prompt, or "
                "choose a backbone with more positions"
            )
    tokenized = [
        TokenizedExample(id=example.id, prompt_ids=prompt, answer_ids=())
        for example, prompt in zip(examples, prompt_ids, strict=True)
    ]
    return tokenized, stats


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool) -> list[tuple[int, ...]]:
    """Return the token ids of prompts without truncation, as in training and evaluation."""
    return encode_chat(tokenizer, prompts) if chat else _encode(tokenizer, prompts, special=True)


def _encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, chat: bool
) -> list[tuple[int, ...]]:
    if chat:
        return encode_chat(tokenizer, [example.turns or example.prompt for example in examples])
    return encode_prompts(tokenizer, [example.prompt for example in examples], chat=False)


def encode_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the token ids of answers without EOS."""
    return _encode(tokenizer, answers)


def _room(max_positions: int | None, num_answer_tokens: int) -> int | None:
    """Return the positions before an answer; None if they are not limited."""
    return None if max_positions is None else max_positions - num_answer_tokens


def _encode_truncated(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, limits: Sequence[int] | None, chat: bool
) -> tuple[list[tuple[int, ...]], TokenizationStats]:
    """Return each prompt in at most its limit of tokens (None: no limits) if truncation allows, else in full."""
    stats = TokenizationStats(examples=len(examples))
    prompts = []
    full_prompts = _encode_examples(tokenizer, examples, chat=chat)
    for index, (example, full_ids) in enumerate(zip(examples, full_prompts, strict=True)):
        if limits is None or len(full_ids) <= limits[index]:
            prompts.append(full_ids)
            continue
        limit = limits[index]
        truncated = _truncate(example, tokenizer, limit=limit, chat=chat)
        stats.truncated += truncated is not None
        stats.too_long += truncated is None
        prompts.append(truncated or full_ids)
    return prompts, stats


def _truncate(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, limit: int, chat: bool
) -> tuple[int, ...] | None:
    """Remove as few words from the start of the context as necessary; None if that is not enough."""
    if example.context is None:
        return None
    start, end = example.context
    words = re.finditer(r"\S+", example.prompt[start:end])
    starts = [*[start + word.start() for word in words][1:], end]

    # tokenized again, because tokens at a cut differ from those of the full text
    def ids_from(position: int) -> tuple[int, ...]:
        text = example.prompt[:start] + example.prompt[position:]
        return encode_prompts(tokenizer, [text], chat=chat)[0]

    # binary search: the token count falls with (almost) every word removed
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if len(ids_from(starts[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    # a loop, because with some tokenizers the count can rise by one when a word is removed
    for position in starts[low:]:
        ids = ids_from(position)
        if len(ids) <= limit:
            return ids
    return None


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False
) -> list[tuple[int, ...]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    ids = [tuple(int(token) for token in sequence) for sequence in encoded]
    if special:
        # a prompt continues with its answer: no EOS in between
        num_trailing = _num_trailing_special(tokenizer)
        ids = [sequence[: len(sequence) - num_trailing] for sequence in ids]
    return ids


def _num_trailing_special(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens the tokenizer appends to a text."""
    # measured: in fast tokenizers the post-processor decides, not add_eos_token
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    added = len(special) - len(plain)
    counts = (count for count in range(added + 1) if special[added - count : len(special) - count] == plain)
    return next(counts, 0)


def _reject_unknown_words(
    examples: Sequence[Example], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    unknown_id = tokenizer.unk_token_id
    if unknown_id is None:
        raise UserError("backbone.closed_vocabulary=true: needs a tokenizer with an unknown token")
    for example, text, ids in zip(examples, texts, _encode(tokenizer, texts), strict=True):
        if unknown_id not in ids:
            continue
        # word by word, because the tokens do not show which text they replace
        words = list(dict.fromkeys(text.split()))
        unknown = [word for word, ids in zip(words, _encode(tokenizer, words), strict=True) if unknown_id in ids]
        more = f" and {len(unknown) - NUM_NAMED_WORDS} more" if len(unknown) > NUM_NAMED_WORDS else ""
        raise UserError(
            f"{example.id}: contains words outside this backbone's closed vocabulary: "
            f"{', '.join(map(repr, unknown[:NUM_NAMED_WORDS]))}{more}; use its own data "
            "(data.source=miniature, without data.mirror_dir and data.local_dir), or a backbone for real "
            "text, e.g. backbone=gemma3_270m"
        )
