"""A summed loss over many positions without holding all logits in memory.

The head is frozen, so the gradient of a chunk's loss with respect to its hidden states is computed
together with its logits, which are then freed; nothing is computed twice.

Shapes: N label positions, D hidden size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

MAX_LOGITS = 2**26
"""Logits per chunk (N times V): 256 MiB in float32, of which a loss holds several copies."""
ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""Maps the hidden states of a chunk and its slice of the N positions to the summed loss."""


def logit_chunk_size(backbone: PreTrainedModel) -> int | None:
    """Return how many positions' logits are computed at once; None for all of them.

    All under ZeRO stage 3: its ranks gather a sharded head together, and the number of chunks differs between ranks.
    """
    if any(hasattr(parameter, "ds_id") for parameter in backbone.parameters()):
        return None
    vocab_size = int(backbone.config.get_text_config(decoder=True).vocab_size)
    return max(1, MAX_LOGITS // vocab_size)


def chunked_loss_sum(loss: ChunkLoss, hidden_states: torch.Tensor, *, chunk_size: int) -> torch.Tensor:
    """Return the sum of ``loss`` over chunks of ``hidden_states`` (N, D).

    The gradient reaches ``hidden_states`` only: ``loss`` must not use other trainable parameters.
    """
    if not (torch.is_grad_enabled() and hidden_states.requires_grad):
        chunks = _chunks(len(hidden_states), chunk_size)
        return torch.stack([loss(hidden_states[chunk], chunk) for chunk in chunks]).sum()
    total: torch.Tensor = _ChunkedLoss.apply(hidden_states, loss, chunk_size)
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, loss: ChunkLoss, chunk_size: int) -> torch.Tensor:
        gradient = torch.empty_like(hidden_states)
        losses = []
        for chunk in _chunks(len(hidden_states), chunk_size):
            with torch.enable_grad():  # disabled inside autograd.Function.forward
                rows = hidden_states[chunk].detach().requires_grad_()
                value = loss(rows, chunk)
                (gradient[chunk],) = torch.autograd.grad(value, rows)
            losses.append(value.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None


def _chunks(count: int, chunk_size: int) -> Iterator[slice]:
    for start in range(0, count, chunk_size):
        yield slice(start, min(start + chunk_size, count))
