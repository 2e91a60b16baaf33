"""Count the activations that a training step saves, with a forward pass on the meta device.

On the meta device operations compute shapes only, and autograd still reports which tensors it
saves. The count holds for any architecture and adapter; the workspace of single operations is not
included.

Shapes: B examples of a micro-batch, T tokens of the longest, N answer tokens, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface

from imsm.models.siamese.gate import apply_gate
from imsm.models.siamese.model import SiameseForCausalLM

KVCacheLayer = tuple[int, int | None]
"""Bytes of one token's keys and values in one attention layer, and its window in tokens (None: unlimited)."""

_ATTENTION_NAME = "imsm_plan"


@dataclass(kw_only=True)
class ActivationTrace:
    """What one forward pass of a micro-batch saves.

    Attributes:
        activations: Bytes saved for the backward pass by decoder and gate.
        kv_cache: Each attention layer; empty if the model does not use attention functions.
    """

    activations: int
    kv_cache: list[KVCacheLayer] = field(default_factory=list)


def trace_activations(
    model: SiameseForCausalLM, *, rows: int, tokens: int, answers: int, fused: bool
) -> ActivationTrace:
    """Trace the forward pass of a micro-batch.

    ``model`` is on the meta device; ``rows`` is B, ``tokens`` T and ``answers`` N, of all rows. With
    ``fused`` (sdpa, flash; not eager), attention saves no (T, T) matrices.

    Raises:
        RuntimeError: The model's forward reads values.
    """
    kv_cache: list[KVCacheLayer] = []
    attention = model.backbone.config._attn_implementation
    if fused:
        model.backbone.set_attn_implementation(_ATTENTION_NAME)
    try:
        # padding on the right needs no mask, but virtual tokens do
        masked = model.streams.virtual_tokens is not None
        with _record_attention(kv_cache, masked=masked), torch.device("meta"), _count_saved_bytes(model) as saved:
            tuned = _decoder_forward(model, rows, tokens, masked=not fused)
            if model.stream == "interwoven":
                _gate_forward(model, tuned, answers)
                saved[-1] = tuned.nbytes  # hidden states of the original, which need no gradient
        return ActivationTrace(activations=sum(saved.values()), kv_cache=kv_cache)
    finally:
        model.backbone.set_attn_implementation(attention)


def _decoder_forward(model: SiameseForCausalLM, rows: int, tokens: int, *, masked: bool) -> torch.Tensor:
    """Return the tuned hidden states, (B, T, D)."""
    inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}
    if masked:  # eager attention would build its mask from values
        inputs["attention_mask"] = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    if not model.streams.layers:  # prompt learning: gradients flow through the input embeddings
        embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
        # without trainable parameters nothing must be saved, so the inputs need no gradient either
        trainable = any(parameter.requires_grad for parameter in model.adapted.parameters())
        inputs["inputs_embeds"] = embedded.requires_grad_(trainable)
    outputs = model.streams.decoder(**inputs, use_cache=False)
    hidden_states: torch.Tensor = outputs.last_hidden_state
    return hidden_states


def _gate_forward(model: SiameseForCausalLM, tuned: torch.Tensor, answers: int) -> None:
    """Run gate and interweaving at the answer positions, (N, D)."""
    hidden = tuned.new_empty(answers, tuned.shape[-1]).requires_grad_(True)
    assert model.gate is not None
    apply_gate(model.gate, hidden, hidden, hidden, hidden)


@contextmanager
def _count_saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yield the bytes of each storage that autograd saves, except the model's own tensors."""
    # storages, not tensors: views of one storage are saved once
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    alive = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that its address is not reused
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        yield saved


# transformers calls a registered function without user data, so the recorder is global
_recorders: list[tuple[list[KVCacheLayer], bool]] = []


@contextmanager
def _record_attention(kv_cache: list[KVCacheLayer], *, masked: bool) -> Iterator[None]:
    """Record the layers that run in this block; ``masked``: their attention has a mask."""
    _recorders.append((kv_cache, masked))
    try:
        yield
    finally:
        _recorders.pop()


def _fused_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function that saves query, key, value, mask and output, as fused kernels do.

    ``query`` is (B, H, T, d), ``key`` and ``value`` are (B, G, T, d), repeated to H heads as transformers
    does with a mask. ``attention_mask`` is ignored; a batch with a mask has one of shape (B, 1, T, T).
    """
    kv_cache, masked = _recorders[-1]
    kv_cache.append((2 * key[0, :, 0].nbytes, options.get("sliding_window")))
    groups = query.shape[1] // key.shape[1]
    if not masked:
        return _FusedAttention.apply(query, key, value).transpose(1, 2), None
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    output = _FusedAttention.apply(query, key, value, mask)
    return output.transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    """Save the tensors that a fused attention kernel saves."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """Return an output of shape (B, H, T, d), with the head size of the value."""
        query, _, value = inputs[:3]
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(*inputs, output)
        return output


AttentionInterface.register(_ATTENTION_NAME, _fused_attention)
