"""The memory of a run, part by part: what is counted exactly, and what is estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from imsm.plan.activations import ActivationTrace, trace_activations
from imsm.siamese.long_answers import logit_chunk_size
from imsm.siamese.memory_bank import bank_bytes

if TYPE_CHECKING:
    from torch import nn

    from imsm.siamese.model import SiameseForCausalLM


def _adamw(parameter: torch.Tensor) -> int:
    """Two moments of every value."""
    return 2 * parameter.nbytes


def _adafactor(parameter: torch.Tensor) -> int:
    """A row's and a column's second moments of a matrix, all of them of a vector."""
    if parameter.ndim < 2:
        return parameter.nbytes
    *rest, rows, columns = parameter.shape
    return math.prod(rest) * (rows + columns) * parameter.element_size()


OPTIMIZER_BYTES: dict[str, Callable[[torch.Tensor], int]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
}
"""What an optimizer of `imsm.training.optimizer` keeps for one parameter."""


@dataclass(frozen=True, kw_only=True)
class StaticMemory:
    """Bytes that follow from shapes and dtypes alone."""

    frozen: int
    """Parameters, not bytes: the backbone's, shared ones once."""
    weights: int
    """Of these, and of the backbone's buffers."""
    trainables: int
    gradients: int
    optimizer: int


def count_bytes(model: SiameseForCausalLM, *, optimizer: str) -> StaticMemory:
    """The bytes that a model's weights, trainables, gradients and optimizer take.

    Args:
        model: with or without values.
        optimizer: a name of `OPTIMIZER_BYTES`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return StaticMemory(
        frozen=sum(p.numel() for p in frozen),
        weights=sum(p.nbytes for p in (*frozen, *model.buffers())),
        trainables=sum(p.nbytes for p in trained),
        gradients=sum(p.nbytes for p in trained),
        optimizer=sum(OPTIMIZER_BYTES[optimizer](p) for p in trained),
    )


@dataclass(frozen=True, kw_only=True)
class DynamicMemory:
    """Bytes at the longest micro-batch; None: the model's forward cannot be watched."""

    activations: int | None
    logits: int
    cache: list[tuple[int, int | None]]
    """Per attention layer: bytes of one token's keys and values, and its window of tokens."""


def estimate_step(
    model: SiameseForCausalLM,
    *,
    rows: int,
    tokens: int,
    answer_tokens: int,
    attention: str | None,
    checkpointing: bool,
    head_shared: bool,
) -> DynamicMemory:
    """What a training step takes besides what `count_bytes` counts.

    Args:
        model: without values.
        rows: examples of a micro-batch.
        tokens: prompt and answer of the longest of them; all rows are padded to it.
        answer_tokens: of one row.
        attention: transformers' name of the attention's implementation; None: its choice.
        checkpointing: whether layers keep their input alone and run again backwards.
        head_shared: whether processes share the head out (`imsm.siamese.long_answers`).
    """
    answers = rows * answer_tokens
    at_once = None if head_shared else logit_chunk_size(model.backbone)
    fused = attention != "eager" and model.backbone._supports_attention_backend
    try:
        seen = trace_activations(model, rows=rows, tokens=tokens, answers=answers, fused=fused)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        seen = None
    return DynamicMemory(
        activations=_kept(model, seen, rows * tokens, checkpointing) if seen else None,
        logits=min(answers, at_once or answers) * logit_bytes(model),
        cache=seen.cache if seen else [],
    )


def logit_bytes(model: SiameseForCausalLM) -> int:
    """Bytes of one answer token's logits at the peak of the loss, in its backward pass.

    Three times the vocabulary in float32: the logarithms of the probabilities, their gradient, and
    the logits' gradient. With KL to the original, eight times, and ten where a token is left out,
    as measured: the original's distribution and what the divergence keeps of both.
    """
    copies = 3
    if model.kl_regularizer is not None:
        copies = 10 if model.kl_regularizer.mask_target else 8
    return copies * 4 * int(model.config.vocab_size)


def cache_bytes(
    cache: list[tuple[int, int | None]], *, rows: int, tokens: int, streams: int
) -> int:
    """Keys and values of a batch whose sequences are ``tokens`` long, all ``streams`` of it."""
    per_row = sum(size * min(tokens, window or tokens) for size, window in cache)
    return streams * rows * per_row


def bank_of_examples(model: SiameseForCausalLM, *, examples: int, answer_tokens: float) -> int:
    """Bytes of the original memories of examples with so many answer tokens each (mean)."""
    return bank_bytes(
        examples=examples,
        answer_tokens=examples * answer_tokens,
        width=int(model.config.hidden_size),
        dtype=_dtype(model),
    )


def _kept(model: SiameseForCausalLM, seen: ActivationTrace, positions: int, checkpointing: bool) -> int:
    layers = int(model.config.text_config.num_hidden_layers)
    if not checkpointing:
        return seen.activations
    inputs = layers * positions * int(model.config.hidden_size) * _dtype(model).itemsize
    return inputs + seen.activations // layers


def _dtype(model: SiameseForCausalLM) -> torch.dtype:
    embeddings: nn.Module = model.get_input_embeddings()
    return next(embeddings.parameters()).dtype
