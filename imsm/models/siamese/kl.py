"""How far an answer's distribution is from the original model's: a penalty on forgetting.

    sum over the N positions of KL(p_o || p),  p = softmax(z)

The variant of "Mask the Target" (2605.29498) leaves the right token out of both distributions
and renormalises: what the example teaches is then not held against the model.

Legend: N answer positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class KLRegularizer:
    """A term of the training loss.

    Args:
        weight: beta, of the term in the loss.
        mask_target: whether the right token is left out.
    """

    weight: float
    mask_target: bool = False


def divergence(
    original: torch.Tensor, answering: torch.Tensor, *, without: torch.Tensor | None = None
) -> torch.Tensor:
    """The sum of KL(p_o || p) in nats.

    Args:
        original: the original model's logits, (N, V).
        answering: the logits that are trained, (N, V).
        without: a token of each position that both leave out, (N,); None: no token.
    """
    logits = [original.float(), answering.float()]
    if without is not None:
        # the least finite number: a probability of 0 whose logarithm can still be multiplied by it
        least = torch.finfo(torch.float32).min
        logits = [each.scatter(-1, without[:, None], least) for each in logits]
    one, other = (each.log_softmax(dim=-1) for each in logits)
    return functional.kl_div(other, one, reduction="sum", log_target=True)
