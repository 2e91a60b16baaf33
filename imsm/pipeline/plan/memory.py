"""What a plan says of a run's memory, part by part, with what each number rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from imsm.evaluation.likelihood import MAX_COPY_BYTES
from imsm.models.siamese.chunked_loss import logit_chunk_size
from imsm.models.siamese.hidden_state_cache import bank_bytes
from imsm.pipeline.engine import engine_settings, micro_batch_size
from imsm.pipeline.model import needs_original_stream
from imsm.pipeline.plan.activations import ActivationTrace, trace_activations
from imsm.pipeline.plan.data import judged
from imsm.pipeline.plan.types import MemoryItem
from imsm.training.optimizer import ELEMENTWISE
from imsm.utils.formatting import format_bytes

if TYPE_CHECKING:
    from torch import nn

    from imsm.config.schema import RunConfig
    from imsm.distributed.topology import Topology
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.pipeline.plan.data import LengthStats


_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class ZeroSharding:
    """How ZeRO cuts a training up.

    Attributes:
        stage: 1 shares the optimizer's state, 2 the gradients as well, 3 the frozen weights too.
        size: the number of processes.
        offload: whether optimizer state, and in stage 3 the weights, lie in the CPU's memory.
        elementwise: whether the optimizer's work can be shared; if not, all do all of it.
        bucket: values that are sent at once.
        gathered: bytes of frozen weights that stage 3 has whole at a time, about.
    """

    stage: int
    size: int
    offload: bool
    elementwise: bool
    bucket: int
    gathered: int


def shared_parts(exact: StaticMemory, shares: ZeroSharding, *, optimizer: str, weights: str) -> list[MemoryItem]:
    """The parts of one GPU's memory that do not depend on the batch.

    Args:
        exact: of one process alone.
        shares: how they are cut up.
        optimizer: its name.
        weights: what the frozen weights are, in words.
    """
    size, there = shares.size, "in the CPU's memory"

    def share(name: str, whole: int, how: str, *, away: bool) -> MemoryItem:
        here = 0 if away else -(-whole // size)
        words = f"{how}, {there}" if away else f"{how}, one of {size} shares"
        return MemoryItem(name=name, size=here, how=words, exact=True)

    def all_of(name: str, whole: int, how: str, *, exactly: bool = True) -> MemoryItem:
        return MemoryItem(name=name, size=whole, how=how, exact=exactly)

    parts = []
    if shares.stage == 3:
        parts.append(share("weights", exact.weights, weights, away=shares.offload))
        how = "layers' weights that are whole for their turn, the next ones among them"
        parts.append(all_of("gathered", shares.gathered, how, exactly=False))
    else:
        parts.append(all_of("weights", exact.weights, weights))
    parts.append(all_of("trainables", exact.trainables, "adapter and gate in float32"))
    away = shares.offload
    parts.append(share("ZeRO's copy", exact.trainables, "of them in float32", away=away))
    if shares.stage == 1:
        parts.append(all_of("gradients", exact.gradients, "float32"))
    else:
        parts.append(share("gradients", exact.gradients, "float32", away=away))
    how = f"{shares.bucket:,} values that are sent at once"
    parts.append(all_of("bucket", _FLOAT32 * shares.bucket, how))
    if shares.elementwise:
        return [*parts, share("optimizer", exact.optimizer, optimizer, away=away)]
    how = f"{optimizer} looks at whole matrices: its state, a copy of values and gradients"
    whole = exact.optimizer + exact.trainables + exact.gradients
    return [*parts, all_of("optimizer", whole, how)]


def _adamw(parameter: torch.Tensor) -> int:
    """Two moments of every value."""
    return 2 * parameter.nbytes


def _adafactor(parameter: torch.Tensor) -> int:
    """A row's and a column's second moments of a matrix, all of them of a vector."""
    if parameter.ndim < 2:
        return parameter.nbytes
    *rest, rows, columns = parameter.shape
    return math.prod(rest) * (rows + columns) * parameter.element_size()


OPTIMIZER_BYTES: dict[str, Callable[[torch.Tensor], int]] = {"adamw": _adamw, "adafactor": _adafactor}
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
        head_shared: whether processes share the head out (`imsm.models.siamese.chunked_loss`).
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


def cache_bytes(cache: list[tuple[int, int | None]], *, rows: int, tokens: int, streams: int) -> int:
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


TRAINING = "memory per GPU, training"
EVALUATION = "memory per GPU, evaluation"
DISK = "on disk"
RAM = "in the CPU's memory, of each process"


def memory_parts(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: dict[str, LengthStats],
    layout: Topology,
) -> dict[str, list[MemoryItem]]:
    """The parts of `TRAINING`, `EVALUATION`, and `DISK` or `RAM`.

    Args:
        config: the run's.
        model: without values.
        train: the training examples; None: nothing is trained.
        tests: each task's items.
        layout: the processes that share the training out.
    """
    exact = count_bytes(model, optimizer=config.trainer.optimizer)
    rows = micro_batch_size(config, processes=layout.size)
    prompt, answer = train.longest if train is not None else (1, 1)
    virtual = 0 if model.streams.virtual is None else model.streams.virtual.count
    step = estimate_step(
        model,
        rows=rows,
        tokens=virtual + prompt + answer,
        answer_tokens=answer,
        attention=config.backbone.attn_implementation,
        checkpointing=config.trainer.gradient_checkpointing,
        head_shared=layout.distributed and layout.stage == 3,
    )
    found = {}
    if train is not None:
        kept = f"kept of {rows} examples of {prompt} + {answer} tokens (longest prompt and answer)"
        kept += f", after {virtual} virtual ones" if virtual else ""
        if config.trainer.gradient_checkpointing:
            kept += ", layers' inputs and one layer"
        words = f"of {rows} × {answer} answer tokens, {model.config.vocab_size:,} words each"
        if step.logits < rows * answer * logit_bytes(model):
            words += ", a part at a time"
        found[TRAINING] = [
            *_training_parts(config, model, exact, layout),
            MemoryItem(name="activations", size=step.activations, how=kept, exact=False),
            MemoryItem(name="answer logits", size=step.logits, how=words, exact=False),
        ]
    caches = _caches(config, step.cache, tests, virtual=virtual)
    found[EVALUATION] = [*_model_parts(config, exact), caches]
    if train is not None and needs_original_stream(config) and config.hidden_state_cache != "off":
        found[RAM if config.hidden_state_cache == "ram" else DISK] = [_bank(config, model, train)]
    return found


def _training_parts(
    config: RunConfig, model: SiameseForCausalLM, exact: StaticMemory, layout: Topology
) -> list[MemoryItem]:
    """What one process has of the model, its gradients and the optimizer."""
    optimizer = config.trainer.optimizer
    if not layout.distributed:
        return [
            *_model_parts(config, exact),
            _exact("gradients", exact.gradients, "float32"),
            _exact("optimizer", exact.optimizer, optimizer),
        ]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    ahead = config.engine.prefetch_bucket_size * frozen[0].element_size()
    zero = engine_settings(config, model, layout=layout)["zero_optimization"]
    shares = ZeroSharding(
        stage=layout.stage,
        size=layout.size,
        offload=layout.offload,
        elementwise=optimizer in ELEMENTWISE,
        bucket=zero["reduce_bucket_size"],
        gathered=min(exact.weights, ahead + max(p.nbytes for p in frozen)),
    )
    return shared_parts(exact, shares, optimizer=optimizer, weights=_weights(config, exact))


def _weights(config: RunConfig, exact: StaticMemory) -> str:
    shared = ", shared by both streams" if config.method.stream == "interwoven" else ""
    return f"{exact.frozen:,} frozen parameters in {config.backbone.dtype}{shared}"


def _model_parts(config: RunConfig, exact: StaticMemory) -> list[MemoryItem]:
    parts = [_exact("weights", exact.weights, _weights(config, exact))]
    if config.method.trainable:
        learns = "the gate" if config.frozen_adapter is not None else "adapter and gate"
        parts.append(_exact("trainables", exact.trainables, f"{learns} in float32"))
    return parts


def _caches(
    config: RunConfig, cache: list[tuple[int, int | None]], tests: dict[str, LengthStats], *, virtual: int
) -> MemoryItem:
    """The largest keys and values of the tasks that are asked; virtual tokens are the tuned's.

    Either new tokens follow the prompts, or accepted answers follow copies of some of them.
    """
    rows, tasks = config.evaluation.batch_size, judged(config)
    streams = 2 if config.method.stream == "interwoven" else 1
    longest = {name: lengths.longest[0] for name, lengths in tests.items()}
    name = max(longest, key=lambda each: longest[each] + tasks[each].max_new_tokens)
    new = tasks[name].max_new_tokens
    size = None

    def held(tokens: int) -> int:
        found = cache_bytes(cache, rows=rows, tokens=virtual + tokens, streams=1)
        return found + cache_bytes(cache, rows=rows, tokens=tokens, streams=streams - 1)

    if cache:
        copies = min(MAX_COPY_BYTES, held(sum(tests[name].longest)))
        size = max(held(longest[name] + new), held(longest[name]) + copies)
    both = ", both streams" if streams == 2 else ""
    how = f"{rows} prompts of {name}, {longest[name]} (the longest) + {new} new tokens{both}"
    how += f", or copies of them up to {format_bytes(MAX_COPY_BYTES)}, with accepted answers"
    how += f", the tuned one after {virtual} virtual tokens" if virtual else ""
    return MemoryItem(name="KV caches", size=size, how=how, exact=False)


def _bank(config: RunConfig, model: SiameseForCausalLM, train: LengthStats) -> MemoryItem:
    if train.examples is None or train.mean is None:
        how = "the number and the lengths of the examples are not known"
        return MemoryItem(name="memory bank", size=None, how=how, exact=False)
    answer = train.mean[1]
    size = bank_of_examples(model, examples=train.examples, answer_tokens=answer)
    limit = config.hidden_state_cache_gb
    how = (
        f"the original's memories of {train.examples:,} examples at {answer:.0f} answer tokens "
        f"(mean), and one of the query; hidden_state_cache={config.hidden_state_cache}, "
    )
    if size > limit * 1e9:
        how += f"more than hidden_state_cache_gb={limit:g}, so "
        how += "there will be none" if config.hidden_state_cache == "auto" else "it will be refused"
    else:
        how += "filled in the first steps"
        how += "" if config.hidden_state_cache == "ram" else " and kept for all runs"
    return MemoryItem(name="memory bank", size=size, how=how, exact=False)


def _exact(name: str, size: int, how: str) -> MemoryItem:
    return MemoryItem(name=name, size=size, how=how, exact=True)
