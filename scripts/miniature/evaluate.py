"""Measures the miniature: greedy answers to the twins, read by the tasks' own extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from imsm.data.example import Example


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 12,
    batch_size: int = 100,
) -> list[str]:
    """Greedy continuations, in the prompts' order."""
    import torch

    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = tokenizer([prompts[at] for at in places], return_tensors="pt", padding=True)
        with torch.inference_mode():
            made = model.generate(  # type: ignore[operator]
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                max_new_tokens=max_new_tokens,
            )
        new = made[:, batch["input_ids"].shape[1] :]
        for at, text in zip(places, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[at] = text
    return texts


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    task: str,
    max_new_tokens: int = 12,
) -> float:
    """Percentage of examples whose extracted answer is one of the golds (for GSM8K: its number)."""
    from importlib import import_module

    extract = import_module(f"imsm.data.tasks.{task}").extract
    texts = answers(model, tokenizer, [one.prompt for one in examples], max_new_tokens=max_new_tokens)
    right = [
        extract(text).lower() in {extract(gold).lower() for gold in one.golds}
        for text, one in zip(texts, examples, strict=True)
    ]
    return 100.0 * sum(right) / len(right)
