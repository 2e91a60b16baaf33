"""What a training step keeps for its backward pass, counted by a pass over a model without values.

On torch's "meta" device every operation runs on shapes alone, and autograd says what it would
keep. The count holds for any architecture and adapter; what it leaves out is the working space of
single operations.

Legend: B examples of a micro-batch, T tokens of the longest, N answer tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface

from imsm.models.siamese.gate import interweave

if TYPE_CHECKING:
    from torch import nn

    from imsm.models.siamese.model import SiameseForCausalLM

FUSED = "imsm_plan"
"""Name under which transformers' models find `_fused_attention`."""


@dataclass(kw_only=True)
class ActivationTrace:
    """What one pass over a micro-batch was seen to keep.

    Attributes:
        activations: bytes kept by body and gate for the backward pass.
        cache: per attention layer, bytes of keys and values of one token, and its window of
            tokens (None: it sees all); empty where the model's attention cannot be watched.
    """

    activations: int
    cache: list[tuple[int, int | None]] = field(default_factory=list)


def trace_activations(
    model: SiameseForCausalLM, *, rows: int, tokens: int, answers: int, fused: bool
) -> ActivationTrace:
    """Run a model without values over a micro-batch.

    Args:
        model: on "meta"; its stream says what is trained.
        rows: B.
        tokens: T.
        answers: N, of all rows.
        fused: whether the attention keeps no (T, T) matrices (sdpa, flash), as opposed to eager.

    Raises:
        RuntimeError: the model's forward looks at values.
    """
    seen: list[tuple[int, int | None]] = []
    config = model.backbone.config
    before = config._attn_implementation
    if fused:
        model.backbone.set_attn_implementation(FUSED)
    try:
        with _watching(seen), torch.device("meta"), _kept(model) as kept:
            tuned = _body(model, rows, tokens, masked=not fused)
            if model.stream == "interwoven":
                _gate(model, tuned, answers)
                kept[-1] = tuned.nbytes  # the original memory
        return ActivationTrace(activations=sum(kept.values()), cache=seen)
    finally:
        model.backbone.set_attn_implementation(before)


def _body(model: SiameseForCausalLM, rows: int, tokens: int, *, masked: bool) -> torch.Tensor:
    """The tuned memory (B, T, D); prompt learning reads embeddings that learn, unless frozen.

    A ready mask is given where the attention asks for one: making it looks at values.
    """
    inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}
    if masked:
        inputs["attention_mask"] = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    if not model.streams.layers:
        embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
        learns = any(parameter.requires_grad for parameter in model.adapted.parameters())
        inputs["inputs_embeds"] = embedded.requires_grad_(learns)
    outputs = model.streams.body(**inputs, use_cache=False)
    memory: torch.Tensor = outputs.last_hidden_state
    return memory


def _gate(model: SiameseForCausalLM, tuned: torch.Tensor, answers: int) -> None:
    """Gate and mix at the answer positions, (N, D)."""
    memory = tuned.new_empty(answers, tuned.shape[-1]).requires_grad_(True)
    assert model.gate is not None
    interweave(memory, memory, model.gate(memory, memory, memory, memory))


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps, the model's own tensors aside."""
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that no other storage takes its place
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


_watched: list[list[tuple[int, int | None]]] = []


@contextmanager
def _watching(seen: list[tuple[int, int | None]]) -> Iterator[None]:
    _watched.append(seen)
    try:
        yield
    finally:
        _watched.pop()


def _fused_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention that keeps query, key, value, mask and output, as the fused kernels do.

    Args:
        module: the attention layer, as transformers hands it over.
        query: (B, H, T, d).
        key: (B, G, T, d); its heads are repeated, as transformers does where there is a mask.
        value: (B, G, T, d).
        attention_mask: whatever; a batch with padding has one of (B, 1, T, T).
        options: the layer's scale, window and so on.
    """
    _watched[-1].append((2 * key[0, :, 0].nbytes, options.get("sliding_window")))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    output = _FusedAttention.apply(query, key, value, mask)
    return output.transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """The output's shape is the query's (B, H, T, d), but for a narrower value's."""
        query, _, value, _ = inputs
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(*inputs, output)
        return output


AttentionInterface.register(FUSED, _fused_attention)
