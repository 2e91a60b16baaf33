"""Pre-trains the miniature on the CPU: packed documents, next-token loss, AdamW, a cosine."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.miniature.corpus import FACTS_FIRST, READING, Document, Mixture, documents
from scripts.miniature.world import World

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

SHAPE: dict[str, Any] = {
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "intermediate_size": 432,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
ROWS, WIDTH = 14, 128  # one step's packed rows and their tokens
WARMUP = 100
KEEP = 250  # steps between two savings
CHUNK = 4096  # documents encoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the pre-training: a mixture, and one cosine of learning rates from `peak`."""

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
    """One step's batch. All tensors (rows, width); `place` numbers the documents of a row."""

    ids: torch.Tensor
    labels: torch.Tensor  # -100 where nothing is learned
    place: torch.Tensor
    positions: torch.Tensor


def make_model(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> LlamaForCausalLM:
    """A Llama of SHAPE with fresh weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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
    world: World,
    tokenizer: PreTrainedTokenizerBase,
    *,
    forbidden: frozenset[str],
    seed: int,
    folder: Path,
    share: float = 1.0,
) -> LlamaForCausalLM:
    """Train from scratch through all STAGES and save in `folder`, now and then and at the end.

    `forbidden` prompts never occur; `share` shortens every stage, for a trial.
    """
    model = make_model(tokenizer, seed=seed)
    for stage in STAGES:
        rng = random.Random(f"{seed}/corpus/{stage.name}")
        stream = documents(rng, world, forbidden=forbidden, mixture=stage.mixture)
        batches = pack(stream, tokenizer)
        steps = max(1, round(stage.steps * share))
        run_stage(model, batches, name=stage.name, steps=steps, peak=stage.peak, folder=folder)
    return model.eval()


def run_stage(
    model: LlamaForCausalLM, batches: Iterator[Packed], *, name: str, steps: int, peak: float, folder: Path
) -> None:
    """One cosine of learning rates; a progress bar shows the loss."""
    import torch
    from tqdm import tqdm

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    bar = tqdm(range(steps), desc=f"pre-training, {name}", unit="step", mininterval=2.0)
    for step in bar:
        loss = packed_loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % KEEP == KEEP - 1 or step == steps - 1:
            model.save_pretrained(folder)


def packed_loss(model: LlamaForCausalLM, batch: Packed) -> torch.Tensor:
    """Mean next-token loss over the learned positions; a document sees itself alone."""
    import torch

    earlier = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    same = batch.place[:, :, None] == batch.place[:, None, :]
    hidden = model.model(
        input_ids=batch.ids, attention_mask=(same & earlier)[:, None], position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    wanted = batch.labels[:, 1:]
    learned = wanted != -100
    logits = model.lm_head(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, wanted[learned])


def pack(stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Packed]:
    """Fill rows with whole documents; what does not fit opens the next row."""
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
    """Ids and labels per document: the prompt begins with `<s>`, the answer ends with `</s>`."""
    while True:
        chunk = [next(stream) for _ in range(CHUNK)]
        prompts = tokenizer([one.prompt for one in chunk])["input_ids"]
        answers = tokenizer([one.answer for one in chunk], add_special_tokens=False)["input_ids"]
        for document, prompt, answer in zip(chunk, prompts, answers, strict=True):
            head = prompt if document.prompt else [tokenizer.bos_token_id]
            answer = [*answer, tokenizer.eos_token_id]
            if tokenizer.unk_token_id in head or tokenizer.unk_token_id in answer:
                raise ValueError(f"a word of this document is not in the vocabulary: {document}")
            learned = [-100, *head[1:]] if document.whole else [-100] * len(head)
            yield head + answer, learned + answer


def _stack(rows: list[tuple[list[int], list[int], list[int], list[int]]], pad: int) -> Packed:
    import torch

    fill = (pad, -100, 0, 0)
    parts = [torch.tensor([row[at] + [fill[at]] * (WIDTH - len(row[at])) for row in rows]) for at in range(4)]
    return Packed(*parts)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * done))
