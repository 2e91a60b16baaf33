"""Evaluate the miniature on the synthetic datasets with greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imsm.data.example import Example


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 12,
    batch_size: int = 100,
) -> list[str]:
    """Return greedy continuations in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = tokenizer([prompts[index] for index in indices], return_tensors="pt", padding=True)
        with torch.inference_mode():
            generated = model.generate(  # type: ignore[operator]
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                max_new_tokens=max_new_tokens,
            )
        new = generated[:, batch["input_ids"].shape[1] :]
        for index, text in zip(indices, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[index] = text
    return texts


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    task: str,
    max_new_tokens: int = 12,
) -> float:
    """Return the percentage of examples whose extracted answer is a reference (for GSM8K: its number)."""
    extract = import_module(f"imsm.data.tasks.{task}").extract
    texts = generate(model, tokenizer, [example.prompt for example in examples], max_new_tokens=max_new_tokens)
    right = [
        extract(text).lower() in {extract(gold).lower() for gold in example.golds}
        for text, example in zip(texts, examples, strict=True)
    ]
    return 100.0 * sum(right) / len(right)


def first_token_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[tuple[str, Sequence[str]]],
    *,
    batch_size: int = 100,
) -> float:
    """Return the percentage of (prompt, references) whose most likely next token begins a reference.

    A measure of progress: for answers of one token it is the accuracy, otherwise an upper bound.
    """
    right = 0
    for start in range(0, len(items), batch_size):
        prompts, references = zip(*items[start : start + batch_size], strict=True)
        batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
        mask = batch["attention_mask"]
        with torch.inference_mode():
            hidden = model.model(
                input_ids=batch["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
            ).last_hidden_state[:, -1]
            found = model.lm_head(hidden).argmax(-1).tolist()
        for token, golds in zip(found, references, strict=True):
            right += token in {ids[0] for ids in tokenizer(list(golds), add_special_tokens=False)["input_ids"]}
    return round(100.0 * right / len(items), 1)
