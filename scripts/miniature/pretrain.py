"""Pretrain the miniature on the CPU: packed documents, next-token loss, AdamW, cosine schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from scripts.miniature.corpus import FACTS_FIRST, READING, Document, Mixture, documents
from scripts.miniature.world import SyntheticWorld

SHAPE: dict[str, Any] = {
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "intermediate_size": 432,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
ROWS, WIDTH = 14, 128  # packed rows per step, tokens per row
WARMUP = 100
SAVE_STEPS = 250
CHUNK = 4096  # documents tokenized at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of pretraining: a mixture, and a cosine schedule with the maximum learning rate ``peak``."""

    name: str
    mixture: Mixture
    steps: int
    peak: float


STAGES = (
    Stage(name="facts first", mixture=FACTS_FIRST, steps=1500, peak=3e-3),
    Stage(name="reading", mixture=READING, steps=1100, peak=2e-3),
)


@dataclass(frozen=True, slots=True)
class Packed:
    """Batch of one step; all tensors are (ROWS, WIDTH)."""

    ids: torch.Tensor
    labels: torch.Tensor  # -100 where no loss is computed
    document: torch.Tensor  # number of the document, 0 for padding
    positions: torch.Tensor


def make_model(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> LlamaForCausalLM:
    """Build a Llama of SHAPE with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    return LlamaForCausalLM(config)


def pretrain(
    world: SyntheticWorld,
    tokenizer: PreTrainedTokenizerBase,
    *,
    forbidden: frozenset[str],
    seed: int,
    folder: Path,
    step_fraction: float = 1.0,
) -> LlamaForCausalLM:
    """Train from scratch through all STAGES; save to ``folder`` periodically and at the end.

    Prompts in ``forbidden`` are excluded; ``step_fraction`` shortens every stage for a trial.
    """
    model = make_model(tokenizer, seed=seed)
    for stage in STAGES:
        rng = random.Random(f"{seed}/corpus/{stage.name}")
        stream = documents(rng, world, forbidden=forbidden, mixture=stage.mixture)
        batches = pack(stream, tokenizer)
        steps = max(1, round(stage.steps * step_fraction))
        run_stage(model, batches, name=stage.name, steps=steps, peak=stage.peak, folder=folder)
    return model.eval()


def run_stage(
    model: LlamaForCausalLM, batches: Iterator[Packed], *, name: str, steps: int, peak: float, folder: Path
) -> None:
    """Train one stage with a progress bar."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    bar = tqdm(range(steps), desc=f"pretraining, {name}", unit="step", mininterval=2.0)
    for step in bar:
        loss = packed_loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % SAVE_STEPS == SAVE_STEPS - 1 or step == steps - 1:
            model.save_pretrained(folder)


def packed_loss(model: LlamaForCausalLM, batch: Packed) -> torch.Tensor:
    """Return the mean next-token loss; documents attend to themselves only."""
    causal = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    same = batch.document[:, :, None] == batch.document[:, None, :]
    hidden = model.model(
        input_ids=batch.ids, attention_mask=(same & causal)[:, None], position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    learned = targets != -100
    logits = model.lm_head(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, targets[learned])


def pack(stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Packed]:
    """Pack documents into rows; a document that does not fit starts the next row."""
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    row: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
    for number, (ids, labels) in enumerate(_encoded(stream, tokenizer), 1):
        if len(row[0]) + len(ids) > WIDTH:
            rows.append(row)
            row = ([], [], [], [])
        for part, more in zip(row, (ids, labels, [number] * len(ids), list(range(len(ids)))), strict=True):
            part.extend(more)
        if len(rows) == ROWS:
            yield _stack(rows, int(tokenizer.pad_token_id))
            rows = []


def _encoded(stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels per document; prompts start with `<s>`, answers end with `</s>`."""
    while True:
        chunk = [next(stream) for _ in range(CHUNK)]
        prompts = tokenizer([one.prompt for one in chunk])["input_ids"]
        answers = tokenizer([one.answer for one in chunk], add_special_tokens=False)["input_ids"]
        for document, prompt, answer in zip(chunk, prompts, answers, strict=True):
            head = prompt if document.prompt else [tokenizer.bos_token_id]
            answer = [*answer, tokenizer.eos_token_id]
            if tokenizer.unk_token_id in head or tokenizer.unk_token_id in answer:
                raise ValueError(f"a word is not in the vocabulary: {document}")
            learned = [-100, *head[1:]] if document.learn_prompt else [-100] * len(head)
            yield head + answer, learned + answer


def _stack(rows: list[tuple[list[int], list[int], list[int], list[int]]], pad: int) -> Packed:
    fill = (pad, -100, 0, 0)
    parts = [torch.tensor([row[at] + [fill[at]] * (WIDTH - len(row[at])) for row in rows]) for at in range(4)]
    return Packed(*parts)


def _rate(step: int, steps: int) -> float:
    """Linear warmup, then cosine decay to 1/50."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * done))
