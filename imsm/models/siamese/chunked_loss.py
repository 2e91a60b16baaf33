"""A loss over many answer positions without all their logits at once.

The head is frozen, so the gradient of a piece's loss with respect to its memories is computed as
soon as its logits are there; they are let go of then, and nothing is computed twice.

Legend: N answer positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 2**26
"""Logits at once, N times V: 256 MiB of float32, of which a loss has several copies."""
PieceLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""From the memories of some positions, and which ones they are, to the sum of their losses."""


def logit_chunk_size(backbone: PreTrainedModel) -> int | None:
    """Of how many positions the logits are computed together; None: of all.

    All where ZeRO's stage 3 shares a head out: its processes gather it together, and one of them
    may have more positions than another.
    """
    if any(hasattr(parameter, "ds_id") for parameter in backbone.parameters()):
        return None
    vocabulary = int(backbone.config.get_text_config(decoder=True).vocab_size)
    return max(1, LARGEST // vocabulary)


def chunked_loss_sum(loss: PieceLoss, memory: torch.Tensor, *, at_once: int) -> torch.Tensor:
    """The sum of ``loss`` over pieces of ``memory`` (N, D), with a gradient for ``memory`` alone.

    Args:
        loss: must reach no other parameter that is trained.
        memory: what the head reads.
        at_once: positions of a piece.
    """
    if not (torch.is_grad_enabled() and memory.requires_grad):
        pieces = _pieces(len(memory), at_once)
        return torch.stack([loss(memory[piece], piece) for piece in pieces]).sum()
    total: torch.Tensor = _ChunkedLoss.apply(memory, loss, at_once)
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, memory: torch.Tensor, loss: PieceLoss, at_once: int) -> torch.Tensor:
        gradient = torch.empty_like(memory)
        losses = []
        for piece in _pieces(len(memory), at_once):
            with torch.enable_grad():
                rows = memory[piece].detach().requires_grad_()
                value = loss(rows, piece)
                (gradient[piece],) = torch.autograd.grad(value, rows)
            losses.append(value.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def _pieces(count: int, at_once: int) -> Iterator[slice]:
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))
