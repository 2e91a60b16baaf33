"""Pretrain the miniature on the CPU: packed documents, next-token loss, AdamW; resumable.

The corpus of a block of BLOCK steps depends only on the seed and the number of the block, so that a run which is
resumed after a block is the run that was not interrupted (on the same machine and number of threads).
"""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from scripts.miniature.corpus import EQUALITY, FACTS_FIRST, READING, Document, Mixture, documents
from scripts.miniature.world import SyntheticWorld

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
HEAD_SIZE = 64  # serving engines take no smaller one
WIDTH = 128  # tokens per packed row
WARMUP = 100
DECAY = 0.4  # the fraction of the steps, at the end, in which the learning rate falls
END_WEIGHT = 0.25  # of the `</s>` after an answer
EQUAL_HEADS = HEAD_SIZE  # rows of the projections of the head that starts by attending to equal words
EQUAL_WORDS = 0.7  # standard deviation of equal query and key projections, times sqrt(hidden size)
BLOCK = 400  # steps between checkpoints
CHUNK = 1024  # documents tokenized at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of pretraining."""

    name: str
    mixture: Mixture
    blocks: int
    rows: int  # packed rows per step
    peak: float  # learning rate
    prompt_weight: float  # of a prompt's token in the loss
    text_weight: float  # of a token of a text without a prompt


STAGES = (
    # few weights for what cannot be predicted: the answers teach to find equal words
    Stage(name="equal words", mixture=EQUALITY, blocks=13, rows=6, peak=1.2e-3, prompt_weight=0.03, text_weight=0.3),
    # the facts stand in the texts and in the questions
    Stage(name="facts first", mixture=FACTS_FIRST, blocks=12, rows=12, peak=2e-3, prompt_weight=0.3, text_weight=1.0),
    Stage(name="reading", mixture=READING, blocks=16, rows=12, peak=2e-3, prompt_weight=0.1, text_weight=0.5),
)


@dataclass(frozen=True, slots=True)
class Packed:
    """Batch of one step; all tensors are (rows, WIDTH)."""

    ids: torch.Tensor
    weights: torch.Tensor  # of the token in the loss
    document: torch.Tensor  # number of the document, 0 for padding
    positions: torch.Tensor


def make_model(tokenizer: PreTrainedTokenizerBase, *, seed: int) -> LlamaForCausalLM:
    """Build a Llama of SHAPE with random weights.

    One head of each layer starts with equal query and key projections, so that it attends to equal words
    (compare Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023).
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            query, key = layer.self_attn.q_proj.weight[:EQUAL_HEADS], layer.self_attn.k_proj.weight[:EQUAL_HEADS]
            key.copy_(query.normal_(0, EQUAL_WORDS * config.hidden_size**-0.5))
    return model


def pretrain(
    world: SyntheticWorld,
    tokenizer: PreTrainedTokenizerBase,
    *,
    forbidden: frozenset[str],
    seed: int,
    folder: Path,
    state: Path,
    step_fraction: float = 1.0,
    measure: Callable[[LlamaForCausalLM], dict[str, float]] | None = None,
) -> LlamaForCausalLM:
    """Train through all STAGES and save float16 weights to ``folder``; continue from ``state`` if it has a checkpoint.

    Prompts in ``forbidden`` are excluded; ``step_fraction`` shortens the training for a trial. After each block,
    ``measure`` is called and its result added to ``state``/progress.csv.
    """
    model = make_model(tokenizer, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=STAGES[0].peak, betas=(0.9, 0.98), weight_decay=0.01)
    blocks = [stage for stage in STAGES for _ in range(max(1, round(stage.blocks * step_fraction)))]
    state.mkdir(parents=True, exist_ok=True)
    first = _load(model, optimizer, state)
    for block in range(first, len(blocks)):
        stage, rng = blocks[block], random.Random(f"{seed}/corpus/{block}")
        batches = pack(documents(rng, world, forbidden=forbidden, mixture=stage.mixture), tokenizer, stage)
        row = _run_block(model, optimizer, batches, peak=stage.peak, block=block, blocks=len(blocks))
        _save(model, optimizer, state, block + 1)
        row.update(measure(model) if measure and (block % 2 or block == len(blocks) - 1) else {})
        _append(state / "progress.csv", row)
    model.eval().to(torch.float16).save_pretrained(folder)
    return model


def _run_block(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Packed],
    *,
    peak: float,
    block: int,
    blocks: int,
) -> dict[str, float]:
    """Train BLOCK steps with a progress bar; return their mean loss and speed."""
    model.train()
    started, losses, tokens = time.process_time(), [], 0
    for step in tqdm(range(block * BLOCK, (block + 1) * BLOCK), desc=f"block {block + 1}/{blocks}", mininterval=30):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = peak * _rate(step, blocks * BLOCK)
        loss = packed_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += int((batch.document > 0).sum())
    seconds = time.process_time() - started
    return {
        "steps": (block + 1) * BLOCK,
        "loss": round(sum(losses) / len(losses), 4),
        "tokens": tokens,
        "tokens_per_cpu_second": round(tokens / seconds),
    }


def _save(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: Path, block: int) -> None:
    """Write weights and moments after ``block`` blocks; the file is replaced only when it is complete."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": tensor.contiguous() for name, tensor in moments.items()})
    new = state / "checkpoint.new"
    save_file(tensors, new, metadata={"blocks": str(block)})
    new.replace(state / "checkpoint.safetensors")


def _load(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: Path) -> int:
    """Load the checkpoint, if there is one; return the number of finished blocks."""
    file = state / "checkpoint.safetensors"
    if not file.exists():
        return 0
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118
            part, name = key.split(".", 1)
            if part == "model":
                weights[name] = opened.get_tensor(key)
            else:
                index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = opened.get_tensor(key)
        blocks = int(opened.metadata()["blocks"])
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return blocks


def _append(file: Path, row: dict[str, float]) -> None:
    """Add a row of JSON to the log and, if it has measurements, to the table."""
    with file.with_suffix(".jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    if len(row) > 4:
        new = not file.exists()
        with file.open("a", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def packed_loss(model: LlamaForCausalLM, batch: Packed) -> torch.Tensor:
    """Return the weighted mean next-token loss; documents attend to themselves only."""
    causal = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    same = batch.document[:, :, None] == batch.document[:, None, :]
    learned = batch.weights[:, 1:] > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=batch.ids, attention_mask=(same & causal)[:, None], position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][learned])
    losses = torch.nn.functional.cross_entropy(logits.float(), batch.ids[:, 1:][learned], reduction="none")
    weights = batch.weights[:, 1:][learned]
    return (losses * weights).sum() / weights.sum()


_Row = tuple[list[int], list[float], list[int], list[int]]


def pack(stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase, stage: Stage) -> Iterator[Packed]:
    """Pack documents into rows; a document that does not fit starts the next row."""
    rows: list[_Row] = []
    row: _Row = ([], [], [], [])
    for number, (ids, weights) in enumerate(_encoded(stream, tokenizer, stage), 1):
        if len(row[0]) + len(ids) > WIDTH:
            rows.append(row)
            row = ([], [], [], [])
        for part, more in zip(row, (ids, weights, [number] * len(ids), list(range(len(ids)))), strict=True):
            part.extend(more)  # type: ignore[arg-type]
        if len(rows) == stage.rows:
            yield _stack(rows, int(tokenizer.pad_token_id))
            rows = []


def _encoded(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerBase, stage: Stage
) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and weights per document; prompts start with `<s>`, answers end with `</s>`."""
    while True:
        chunk = [next(stream) for _ in range(CHUNK)]
        prompts = tokenizer([one.prompt for one in chunk])["input_ids"]
        answers = tokenizer([one.answer for one in chunk], add_special_tokens=False)["input_ids"]
        for document, prompt, answer in zip(chunk, prompts, answers, strict=True):
            head = prompt if document.prompt else [tokenizer.bos_token_id]
            if tokenizer.unk_token_id in head or tokenizer.unk_token_id in answer:
                raise ValueError(f"a word is not in the vocabulary: {document}")
            before = [0.0] + [stage.prompt_weight * document.learn_prompt] * (len(head) - 1)
            answer_weight = document.weight if document.prompt else stage.text_weight
            learned = (
                [float(at % 2 == 1) for at in range(len(answer))] if document.marked else [answer_weight] * len(answer)
            )
            yield [*head, *answer, tokenizer.eos_token_id], [*before, *learned, END_WEIGHT]


def _stack(rows: list[_Row], pad: int) -> Packed:
    fill = (pad, 0.0, 0, 0)
    parts = [torch.tensor([row[at] + [fill[at]] * (WIDTH - len(row[at])) for row in rows]) for at in range(4)]
    return Packed(*parts)


def _rate(step: int, steps: int) -> float:
    """Linear warmup, constant, then a linear decay to 1/50."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARMUP, max(0.02, left))
