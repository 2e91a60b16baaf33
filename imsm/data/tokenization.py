"""Examples as tokens: prompt and answer apart, the question never cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsm.data.chat_template import encode_chat
from imsm.data.example import Example
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED_WORDS = 8  # of the unknown ones, in the message


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """One example as token ids."""

    id: str
    prompt_ids: tuple[int, ...]
    """Begins with the tokenizer's special tokens (BOS, where it has one)."""
    answer_ids: tuple[int, ...]
    """In training the answer and EOS, both taught; empty in evaluation."""
    task_type: int = 0
    """For methods that tell tasks apart (LoRAMoE): 1 closed-book questions, 0 all others."""


@dataclass(slots=True, kw_only=True)
class TokenizationStats:
    """How many examples the length limits touched."""

    examples: int = 0
    """All that were given."""
    cut: int = 0
    """Kept, with their context cut from the left."""
    too_long: int = 0
    """Prompts that no cut makes fit: dropped from training, kept whole in evaluation."""
    long_answers: int = 0
    """Dropped from training, since the answer and EOS exceed the limit."""
    dropped: int = 0
    """Dropped from training, for either reason."""

    def warning(self) -> str | None:
        """What to tell the user; None where no example was touched."""
        parts = []
        if self.cut:
            parts.append(f"{self.cut} had their context cut from the left")
        if self.too_long:
            kept = "dropped" if self.dropped else "kept whole"
            parts.append(f"{self.too_long} with a prompt too long to cut were {kept}")
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
) -> tuple[list[TokenizedExample], TokenizationStats]:
    """Prompts with special tokens, answers (golds[0]) without, but with EOS.

    A prompt over max_prompt_tokens has its context cut from the left; if that is not enough, or
    there is none, the example is dropped. So is one whose answer and EOS exceed
    max_answer_tokens: a cut answer would teach a wrong one. With ``chat`` a prompt is a user turn
    in the tokenizer's template, which counts as part of it (`imsm.data.chat_template`).

    Raises:
        UserError: a word that a closed vocabulary does not know, a tokenizer without EOS, or no
            example left.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError("The tokenizer has no end-of-sequence token, so no answer could end.")
    answers = [example.golds[0] for example in examples]
    if closed_vocabulary:
        _refuse_unknown_words(examples, [e.prompt for e in examples], tokenizer)
        _refuse_unknown_words(examples, answers, tokenizer)
    prompt_ids, report = _prompts(examples, tokenizer, limit=max_prompt_tokens, chat=chat)
    kept = []
    for example, prompt, answer in zip(examples, prompt_ids, _ids(tokenizer, answers), strict=True):
        answer_ids = (*answer, int(eos))
        if len(answer_ids) > max_answer_tokens:
            report.long_answers += 1
        if len(prompt) > max_prompt_tokens or len(answer_ids) > max_answer_tokens:
            report.dropped += 1
            continue
        kept.append(TokenizedExample(id=example.id, prompt_ids=prompt, answer_ids=answer_ids, task_type=task_type))
    if not kept:
        raise UserError(
            f"No training example is left: {report.warning() or 'none was given.'} Raise "
            f"data.max_prompt_tokens={max_prompt_tokens} or data.max_new_tokens="
            f"{max_answer_tokens}."
        )
    return kept, report


def tokenize_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    closed_vocabulary: bool,
    chat: bool = False,
) -> tuple[list[TokenizedExample], TokenizationStats]:
    """Prompts for evaluation: all of them, cut as in training; what no cut makes fit stays whole.

    Raises:
        UserError: a word that a closed vocabulary does not know.
    """
    if closed_vocabulary:
        _refuse_unknown_words(examples, [e.prompt for e in examples], tokenizer)
    prompt_ids, report = _prompts(examples, tokenizer, limit=max_prompt_tokens, chat=chat)
    tokenised = [
        TokenizedExample(id=example.id, prompt_ids=prompt, answer_ids=())
        for example, prompt in zip(examples, prompt_ids, strict=True)
    ]
    return tokenised, report


def _prompts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, limit: int, chat: bool
) -> tuple[list[tuple[int, ...]], TokenizationStats]:
    """Each example's prompt in at most `limit` tokens where a cut can do it, else whole."""
    report = TokenizationStats(examples=len(examples))
    whole = prompt_tokens(tokenizer, [example.prompt for example in examples], chat=chat)
    prompts = []
    for example, ids in zip(examples, whole, strict=True):
        if len(ids) > limit:
            shorter = _cut(example, tokenizer, limit=limit, chat=chat)
            report.cut += shorter is not None
            report.too_long += shorter is None
            ids = shorter or ids
        prompts.append(ids)
    return prompts, report


def _cut(example: Example, tokenizer: PreTrainedTokenizerBase, *, limit: int, chat: bool) -> tuple[int, ...] | None:
    """The prompt with as few of the context's first words left out as make it fit.

    The text is cut and tokenised again, because tokens at a cut differ from those of the whole;
    a binary search over the beginnings of words, for the count falls with every word (a last step
    forward makes up for tokenizers with which it may rise by one).
    """
    if example.context is None:
        return None
    start, end = example.context
    words = re.finditer(r"\S+", example.prompt[start:end])
    beginnings = [*[start + word.start() for word in words][1:], end]

    def ids_from(position: int) -> tuple[int, ...]:
        text = example.prompt[:start] + example.prompt[position:]
        return prompt_tokens(tokenizer, [text], chat=chat)[0]

    low, high = 0, len(beginnings) - 1
    while low < high:
        middle = (low + high) // 2
        if len(ids_from(beginnings[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    for position in beginnings[low:]:
        ids = ids_from(position)
        if len(ids) <= limit:
            return ids
    return None


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool) -> list[tuple[int, ...]]:
    """What a model is asked, in training and evaluation alike: each whole prompt as token ids."""
    return encode_chat(tokenizer, prompts) if chat else _ids(tokenizer, prompts, special=True)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> list[tuple[int, ...]]:
    """Each answer as the token ids that training teaches, without the end-of-text token."""
    return _ids(tokenizer, answers)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False) -> list[tuple[int, ...]]:
    """Token ids of each text; with special tokens, those at the end are left out.

    A prompt goes on with its answer, so an EOS that a tokenizer adds behind it would be wrong.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    ids = [tuple(int(token) for token in sequence) for sequence in encoded]
    if special:
        tail = _added_at_the_end(tokenizer)
        ids = [sequence[: len(sequence) - tail] for sequence in ids]
    return ids


def _added_at_the_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special = tokenizer("a", add_special_tokens=True)["input_ids"]
    added = len(special) - len(plain)
    tails = (tail for tail in range(added + 1) if special[added - tail : len(special) - tail] == plain)
    return next(tails, 0)


def _refuse_unknown_words(
    examples: Sequence[Example], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None:
        raise UserError("closed_vocabulary=true needs a tokenizer with an unknown token.")
    for example, text, ids in zip(examples, texts, _ids(tokenizer, texts), strict=True):
        if unknown not in ids:
            continue
        words = list(dict.fromkeys(text.split()))
        ids_of = dict(zip(words, _ids(tokenizer, words), strict=True))
        strange = [word for word in words if unknown in ids_of[word]]
        more = f" and {len(strange) - NAMED_WORDS} more" if len(strange) > NAMED_WORDS else ""
        raise UserError(
            f"{example.id} holds words that this backbone's closed vocabulary does not know: "
            f"{', '.join(map(repr, strange[:NAMED_WORDS]))}{more}. Use its own data "
            "(data.source=miniature, without data.mirror_dir and data.local_dir), or a backbone for real "
            "text, e.g. backbone=gemma3_270m."
        )
