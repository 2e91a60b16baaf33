"""Estimate the memory of a run, item by item."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from imsm.config.schema import RunConfig
from imsm.distributed.topology import Topology
from imsm.evaluation.batch_size import fitting_batch_size
from imsm.evaluation.likelihood import MAX_COPY_BYTES
from imsm.models.backbones.decoder import decoder_layers
from imsm.models.siamese.chunked_loss import logit_chunk_size
from imsm.models.siamese.hidden_state_cache import cache_bytes
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import evaluated_tasks
from imsm.pipeline.engine import engine_settings, micro_batch_size
from imsm.pipeline.model import needs_original_stream
from imsm.pipeline.plan.activations import KVCacheLayer, trace_activations
from imsm.pipeline.plan.data import LengthStats, rehearsal_lengths
from imsm.pipeline.plan.machine import gpu_memory
from imsm.pipeline.plan.types import MemoryItem
from imsm.training.optimizer import ELEMENTWISE
from imsm.utils.formatting import format_bytes

TRAINING = "memory per GPU, training"
EVALUATION = "memory per GPU, evaluation"
DISK = "on disk"
RAM = "in CPU memory, per process"
_FLOAT32 = 4
_FOUR_BIT_BYTES = 0.5 + 4 / 64  # of one weight, with a float32 scale for every 64 of them
_CONTEXT_BYTES, _NCCL_BYTES, _FRAGMENTATION = 10**9, 15 * 10**8, 0.05


def estimate_memory(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    train: LengthStats | None,
    tests: dict[str, LengthStats],
    topology: Topology,
    batch_size: int | None = None,
) -> dict[str, list[MemoryItem]]:
    """Return the memory items under `TRAINING`, `EVALUATION`, and `DISK` or `RAM`.

    ``model`` is on the meta device; ``train`` is None if nothing is trained. ``batch_size`` is that of the evaluation
    (`planned_batch_size`); None for `evaluation.batch_size`.
    """
    static = _static_memory(config, model)
    texts = rehearsal_lengths(config, train) if train is not None else None
    prompt, answer = max([each.longest for each in (train, texts) if each is not None] or [(1, 1)], key=sum)
    rows = micro_batch_size(config, processes=topology.world_size, tokens=prompt + answer)
    if train is not None and train.examples is not None:
        rows = min(rows, train.examples)
    virtual_tokens = 0 if model.streams.virtual_tokens is None else model.streams.virtual_tokens.count
    step = estimate_step(
        model,
        rows=rows,
        tokens=virtual_tokens + prompt + answer,
        answer_tokens=answer,
        attention=config.backbone.attn_implementation,
        checkpointing=config.trainer.gradient_checkpointing,
        sharded_head=topology.distributed and topology.stage == 3,
    )
    memory = {}
    if train is not None:
        basis = f"saved for {rows} examples of {prompt} + {answer} tokens (longest prompt and answer)"
        basis += f", after {virtual_tokens} virtual tokens" if virtual_tokens else ""
        if config.trainer.gradient_checkpointing:
            basis += ", inputs of all layers and one layer"
        logits = f"of {rows} × {answer} answer tokens, vocabulary {model.config.vocab_size:,}"
        if step.logits < rows * answer * logit_bytes(model):
            logits += ", in chunks"
        memory[TRAINING] = [
            *_training_items(config, model, static, topology),
            MemoryItem(name="activations", size=step.activations, basis=basis),
            MemoryItem(name="answer logits", size=step.logits, basis=logits),
        ]
    prompts = batch_size or config.evaluation.fixed_batch_size
    kv_caches = _kv_cache_item(config, step.kv_cache, tests, rows=prompts, virtual_tokens=virtual_tokens)
    memory[EVALUATION] = [*_model_items(config, model, static, topology), kv_caches]
    for title in memory if topology.device == "cuda" else ():
        memory[title].append(reserve_item(memory[title], topology))
    if train is not None and needs_original_stream(config) and config.hidden_state_cache != "off":
        title = RAM if config.hidden_state_cache == "ram" else DISK
        memory[title] = [_hidden_state_cache_item(config, model, train)]
    if texts is not None and needs_original_stream(config, texts=True) and config.hidden_state_cache != "off":
        title = RAM if config.hidden_state_cache == "ram" else DISK
        item = _hidden_state_cache_item(config, model, texts)
        memory[title] = [*memory.get(title, []), replace(item, name=f"{item.name}, texts")]
    return memory


@dataclass(frozen=True, kw_only=True)
class StaticMemory:
    """Memory that follows from shapes and dtypes, in bytes."""

    frozen_parameters: int  # number of frozen parameters, shared ones counted once
    weights: int  # frozen parameters and buffers
    trainables: int  # trainable parameters
    gradients: int  # gradients of the trainable parameters
    optimizer: int  # optimizer state


def count_bytes(model: SiameseForCausalLM, *, optimizer: str) -> StaticMemory:
    """Count the bytes of weights, gradients and optimizer state of a model, which may be on the meta device."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return StaticMemory(
        frozen_parameters=sum(p.numel() for p in frozen),
        weights=sum(p.nbytes for p in (*frozen, *model.buffers())),
        trainables=sum(p.nbytes for p in trainable),
        gradients=sum(p.nbytes for p in trainable),
        optimizer=sum(OPTIMIZER_BYTES[optimizer](p) for p in trainable),
    )


def _static_memory(config: RunConfig, model: SiameseForCausalLM) -> StaticMemory:
    static = count_bytes(model, optimizer=config.trainer.optimizer)
    if config.backbone.quantization is None:
        return static
    # of an adapter's layers, the linear ones that it adds are few
    layers = [module for layer in decoder_layers(model.backbone) for module in layer.modules()]
    weights = [each.weight for each in layers if isinstance(each, nn.Linear) and not each.weight.requires_grad]
    saved = sum(weight.nbytes - _FOUR_BIT_BYTES * weight.numel() for weight in weights)
    return replace(static, weights=static.weights - round(saved))


def exact_items(config: RunConfig, model: SiameseForCausalLM, topology: Topology) -> list[MemoryItem]:
    """Return the memory of one process that does not depend on the batch."""
    static = _static_memory(config, model)
    trains = config.method.trainable
    items = (_training_items if trains else _model_items)(config, model, static, topology)
    return [item for item in items if item.exact]


def _adamw(parameter: torch.Tensor) -> int:
    return 2 * parameter.nbytes  # first and second moments


def _adafactor(parameter: torch.Tensor) -> int:
    if parameter.ndim < 2:
        return parameter.nbytes
    *rest, rows, columns = parameter.shape
    return math.prod(rest) * (rows + columns) * parameter.element_size()  # factored second moments


OPTIMIZER_BYTES: dict[str, Callable[[torch.Tensor], int]] = {"adamw": _adamw, "adafactor": _adafactor}
"""Optimizer state of one parameter in bytes, by optimizer name."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one step with the longest micro-batch, in bytes."""

    activations: int | None  # activations saved for the backward pass; None if the forward cannot be traced
    logits: int  # logits of the loss
    kv_cache: list[KVCacheLayer]  # keys and values of each attention layer


def estimate_step(
    model: SiameseForCausalLM,
    *,
    rows: int,
    tokens: int,
    answer_tokens: int,
    attention: str | None,
    checkpointing: bool,
    sharded_head: bool,
) -> StepMemory:
    """Estimate the memory of a training step, in addition to `count_bytes`.

    ``model`` is on the meta device. All ``rows`` of a micro-batch are padded to ``tokens``, of which
    ``answer_tokens`` per row belong to the answer. With ``sharded_head``, ZeRO stage 3 shards the LM head,
    which disables chunked logits.
    """
    answers = rows * answer_tokens
    # a sharded head is gathered for one complete forward pass
    chunk = None if sharded_head else logit_chunk_size(model.backbone)
    fused = attention != "eager" and model.backbone._supports_attention_backend
    try:
        trace = trace_activations(model, rows=rows, tokens=tokens, answers=answers, fused=fused)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        trace = None  # the model's forward reads values, which meta tensors do not have
    activations = None if trace is None else trace.activations
    if activations is not None and checkpointing:
        layers = int(model.config.text_config.num_hidden_layers)
        inputs = layers * rows * tokens * int(model.config.hidden_size) * _dtype(model).itemsize
        # the layer that is recomputed holds its activations while the inputs of all layers are kept
        activations = inputs + activations // layers
    return StepMemory(
        activations=activations,
        logits=min(answers, chunk or answers) * logit_bytes(model),
        kv_cache=trace.kv_cache if trace else [],
    )


def logit_bytes(model: SiameseForCausalLM) -> int:
    """Return the peak bytes of one answer token's logits, reached in the loss's backward pass."""
    # float32 copies of the vocabulary: log-probabilities, their gradient, the logits' gradient; the KL
    # penalty was measured to need 8 copies, or 10 if target tokens are masked
    copies = 3
    if model.kl_regularizer is not None:
        copies = 10 if model.kl_regularizer.mask_target else 8
    return copies * _FLOAT32 * int(model.config.vocab_size)


def kv_cache_bytes(layers: list[KVCacheLayer], *, rows: int, tokens: int, streams: int) -> int:
    """Return the bytes of keys and values of ``rows`` sequences of ``tokens`` tokens."""
    # a layer with a sliding window keeps the tokens of its window only
    per_row = sum(size * min(tokens, window or tokens) for size, window in layers)
    return streams * rows * per_row


def planned_batch_size(
    config: RunConfig, model: SiameseForCausalLM, *, tests: dict[str, LengthStats], topology: Topology
) -> int:
    """Return the prompts per batch of the task with the longest ones; see `imsm.evaluation.auto_batch_size`.

    ``model`` is on the meta device.
    """
    if config.evaluation.batch_size is not None or topology.device != "cuda":
        return config.evaluation.fixed_batch_size
    attention = config.backbone.attn_implementation
    options: dict[str, Any] = {"attention": attention, "checkpointing": False, "sharded_head": False}
    layers = estimate_step(model, rows=1, tokens=1, answer_tokens=1, **options).kv_cache
    if not layers:  # unknown
        return config.evaluation.fixed_batch_size
    items = _model_items(config, model, _static_memory(config, model), topology)
    used = sum(item.size or 0 for item in (*items, reserve_item(items, topology)))
    tasks = evaluated_tasks(config)
    return fitting_batch_size(
        free=gpu_memory() - used,
        kv_bytes_per_token=kv_cache_bytes(
            layers, rows=1, tokens=1, streams=2 if config.method.stream == "interwoven" else 1
        ),
        max_tokens=max(lengths.longest[0] + tasks[name].max_new_tokens for name, lengths in tests.items()),
        vocab_size=int(model.config.vocab_size),
    )


def reserve_item(items: Sequence[MemoryItem], topology: Topology) -> MemoryItem:
    """Return what a GPU needs besides ``items``; not measured."""
    context, nccl = _CONTEXT_BYTES, _NCCL_BYTES if topology.world_size > 1 else 0
    fragments = round(_FRAGMENTATION * sum(item.size or 0 for item in items))
    basis = f"CUDA context and libraries {format_bytes(context)}"
    basis += f", NCCL {format_bytes(nccl)}" if nccl else ""
    basis += f", fragmentation {100 * _FRAGMENTATION:.0f} %; not measured on a GPU"
    return MemoryItem(name="reserve", size=context + nccl + fragments, basis=basis)


def _training_items(
    config: RunConfig, model: SiameseForCausalLM, static: StaticMemory, topology: Topology
) -> list[MemoryItem]:
    """Return model, gradients and optimizer of one process."""
    optimizer = config.trainer.optimizer
    if not topology.stage:
        return [
            *_model_items(config, model, static, topology),
            _exact("gradients", static.gradients, "float32"),
            _exact("optimizer", static.optimizer, optimizer),
        ]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    # DeepSpeed counts its buckets in elements, not bytes
    prefetched = config.engine.prefetch_bucket_size * frozen[0].element_size()
    zero = engine_settings(config, model, topology=topology)["zero_optimization"]
    return zero_items(
        static,
        topology,
        optimizer=optimizer,
        weights=_weights_basis(config, static),
        bucket=zero["reduce_bucket_size"],
        gathered=min(static.weights, prefetched + max(p.nbytes for p in frozen)),
    )


def zero_items(
    static: StaticMemory, topology: Topology, *, optimizer: str, weights: str, bucket: int, gathered: int
) -> list[MemoryItem]:
    """Return the items of one GPU under ZeRO that do not depend on the batch.

    ``weights`` is the basis of the frozen weights, ``bucket`` the number of elements reduced at
    once, ``gathered`` the bytes of frozen weights that stage 3 gathers at once.
    """
    stage, size = topology.stage, topology.world_size

    def sharded(name: str, unsharded: int, basis: str, *, offload: bool) -> MemoryItem:
        # -(-a // b) rounds up: ZeRO pads the last shard
        where = "in CPU memory" if offload else f"one of {size} shards"
        return _exact(name, 0 if offload else -(-unsharded // size), f"{basis}, {where}")

    if stage == 3:
        basis = "weights of the current layers and prefetched ones"
        items = [
            sharded("weights", static.weights, weights, offload=topology.offload),
            MemoryItem(name="gathered", size=gathered, basis=basis),
        ]
    else:
        items = [_exact("weights", static.weights, weights)]
    items.append(_exact("trainables", static.trainables, "adapter and gate in float32"))
    items.append(sharded("ZeRO copy", static.trainables, "trainables in float32", offload=topology.offload))
    if stage == 1:
        items.append(_exact("gradients", static.gradients, "float32"))
    else:
        items.append(sharded("gradients", static.gradients, "float32", offload=topology.offload))
    items.append(_exact("bucket", _FLOAT32 * bucket, f"{bucket:,} elements reduced at once"))
    if optimizer in ELEMENTWISE:
        return [*items, sharded("optimizer", static.optimizer, optimizer, offload=topology.offload)]
    basis = f"{optimizer} needs complete matrices: its state, copies of parameters and gradients"
    return [*items, _exact("optimizer", static.optimizer + static.trainables + static.gradients, basis)]


def _model_items(
    config: RunConfig, model: SiameseForCausalLM, static: StaticMemory, topology: Topology
) -> list[MemoryItem]:
    """Return the model of one process, which ZeRO shards in training only, and FSDP2 always."""
    items = [_exact("weights", static.weights, _weights_basis(config, static))]
    if topology.fsdp2:
        items = _fsdp2_items(model, static, topology, weights=_weights_basis(config, static))
    if config.method.trainable:
        trained = "gate" if config.frozen_adapter is not None else "adapter and gate"
        items.append(_exact("trainables", static.trainables, f"{trained} in float32"))
    return items


def _fsdp2_items(
    model: SiameseForCausalLM, static: StaticMemory, topology: Topology, *, weights: str
) -> list[MemoryItem]:
    """Return the frozen weights of one process under FSDP2, which shards the decoder layers."""
    layers = [
        sum(p.nbytes for p in each.parameters() if not p.requires_grad) for each in decoder_layers(model.backbone)
    ]
    basis = f"decoder layers of {weights}, one of {topology.world_size} shards"
    return [
        _exact("weights", -(-sum(layers) // topology.world_size), basis),
        _exact("complete weights", static.weights - sum(layers), "embeddings, final norm and LM head"),
        MemoryItem(name="gathered", size=4 * max(layers), basis="the current layer and the next one, with buffers"),
    ]


def _weights_basis(config: RunConfig, static: StaticMemory) -> str:
    shared = ", shared by both streams" if config.method.stream == "interwoven" else ""
    quantized = "" if config.backbone.quantization is None else f", linear layers in {config.backbone.quantization}"
    return f"{static.frozen_parameters:,} frozen parameters in {config.backbone.dtype}{quantized}{shared}"


def _kv_cache_item(
    config: RunConfig, layers: list[KVCacheLayer], tests: dict[str, LengthStats], *, rows: int, virtual_tokens: int
) -> MemoryItem:
    """Return the largest KV caches of all tasks: ``rows`` prompts with new tokens, or with copies of references.

    Only the tuned stream has virtual tokens.
    """
    tasks = evaluated_tasks(config)
    streams = 2 if config.method.stream == "interwoven" else 1
    longest = {name: lengths.longest[0] for name, lengths in tests.items()}
    name = max(longest, key=lambda each: longest[each] + tasks[each].max_new_tokens)
    new_tokens = tasks[name].max_new_tokens
    size = None

    def cache_size(tokens: int) -> int:
        tuned = kv_cache_bytes(layers, rows=rows, tokens=virtual_tokens + tokens, streams=1)
        return tuned + kv_cache_bytes(layers, rows=rows, tokens=tokens, streams=streams - 1)

    if layers:
        # scoring references copies the prompt's cache for each of them, up to a fixed limit
        copies = min(MAX_COPY_BYTES, cache_size(sum(tests[name].longest)))
        size = max(cache_size(longest[name] + new_tokens), cache_size(longest[name]) + copies)
    basis = f"{rows} prompts of {name}, {longest[name]} (longest) + {new_tokens} new tokens"
    basis += ", both streams" if streams == 2 else ""
    basis += f", or copies of them up to {format_bytes(MAX_COPY_BYTES)} with reference answers"
    basis += f", tuned stream after {virtual_tokens} virtual tokens" if virtual_tokens else ""
    return MemoryItem(name="KV caches", size=size, basis=basis)


def _hidden_state_cache_item(config: RunConfig, model: SiameseForCausalLM, train: LengthStats) -> MemoryItem:
    name = "hidden-state cache"
    if train.examples is None or train.mean is None:
        return MemoryItem(name=name, size=None, basis="number and lengths of the examples are unknown")
    streams = 1 if config.frozen_adapter is None else 2
    size = streams * cache_bytes(
        num_examples=train.examples,
        num_answer_tokens=train.examples * train.mean[1],
        hidden_size=int(model.config.hidden_size),
        dtype=_dtype(model),
    )
    limit = config.hidden_state_cache_gb
    cached = "the original" if streams == 1 else "both streams"
    basis = (
        f"hidden states of {cached} for {train.examples:,} examples with {train.mean[1]:.0f} answer tokens (mean) "
        f"and one query state; hidden_state_cache={config.hidden_state_cache}, "
    )
    if size > limit * 1e9:
        outcome = "no cache" if config.hidden_state_cache == "auto" else "an error"
        basis += f"more than hidden_state_cache_gb={limit:g}, so {outcome}"
    else:
        basis += "computed in the first steps"
        basis += "" if config.hidden_state_cache == "ram" else " and shared by all runs"
    return MemoryItem(name=name, size=size, basis=basis)


def _dtype(model: SiameseForCausalLM) -> torch.dtype:
    return next(model.get_input_embeddings().parameters()).dtype


def _exact(name: str, size: int, basis: str) -> MemoryItem:
    return MemoryItem(name=name, size=size, basis=basis, exact=True)
