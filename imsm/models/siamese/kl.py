"""KL divergence to the original model, an optional term of the training loss.

    sum over the N label positions of KL(p_o || p),  p = softmax(logits)

The variant of "Mask the Target" (arXiv 2605.29498) removes the target token from both
distributions and renormalizes them, so that learning the target is not penalized.

Shapes: N label positions, V vocabulary size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

Objective = Literal["target", "ce", "kl"]
"""Loss of a batch: of the target's examples, or of rehearsal's texts (cross-entropy, or KL to the original)."""


@dataclass(frozen=True, kw_only=True)
class KLRegularizer:
    """Factor of the KL term in the loss (beta); ``mask_target`` removes the target token from it."""

    weight: float
    mask_target: bool = False


def divergence(
    original_logits: torch.Tensor, logits: torch.Tensor, *, masked_tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of KL(p_o || p) over all positions, in nats, for logits (N, V).

    ``masked_tokens`` (N,) holds one token per position to remove from both distributions.
    """
    # float32: bfloat16 log-probabilities are too coarse
    both = [original_logits.float(), logits.float()]
    if masked_tokens is not None:
        # the lowest finite value instead of -inf: 0 * -inf would be NaN
        lowest = torch.finfo(torch.float32).min
        both = [values.scatter(-1, masked_tokens[:, None], lowest) for values in both]
    original_log_probs, log_probs = (values.log_softmax(dim=-1) for values in both)
    return functional.kl_div(log_probs, original_log_probs, reduction="sum", log_target=True)


def divergence_by_position(original_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(p_o || p) at each position in nats, float32 (N,), for logits (N, V)."""
    original_log_probs, log_probs = (values.float().log_softmax(dim=-1) for values in (original_logits, logits))
    return functional.kl_div(log_probs, original_log_probs, reduction="none", log_target=True).sum(dim=-1)
