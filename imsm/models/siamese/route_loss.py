"""The route loss, which trains the gate on its own values.

    L = BCE(g, y),  y = 0 on the target's answer positions, 1 on those of the original model's texts

averaged over the D components of a vector gate, or the single one of a scalar gate. It needs neither the
head nor logits of the vocabulary, and no gradient reaches the hidden states.

Shapes: N label positions, D hidden size.
"""

import torch
from torch import nn
from torch.nn import functional

from imsm.models.siamese.gate import Gate

TARGET, ORIGINAL = 0.0, 1.0
"""Labels of the two sides: the weight of the original that the gate learns there."""
_EPSILON = 1e-6
"""Minimum distance from 0 and 1 of values that are given without a logit: log(0) is infinite."""


def route_loss_sum(
    gate: nn.Module, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None, label: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the route loss in nats summed over N positions, and the detached weight g, (N, D) or (N, 1).

    ``original`` and ``tuned`` (N, D) are the hidden states that the gate reads, after `Gate.with_query` if it has
    that method; ``queries`` are its further arguments. Only the gate's parameters get a gradient.
    """
    inputs = [None if each is None else each.detach() for each in (original, tuned, *queries)]
    # a custom gate returns values only; with a minimum weight, g differs from the sigmoid
    if type(gate).forward is Gate.forward and not gate.min_original_weight:
        logit = gate.logit(*inputs)  # type: ignore[operator]
        weight = gate.weight(logit)  # type: ignore[operator]
        losses = functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label), reduction="none")
    else:
        weight = gate(*inputs)
        # float32: in half precision 1 - epsilon is 1
        values = weight.float().clamp(_EPSILON, 1 - _EPSILON)
        losses = functional.binary_cross_entropy(values, torch.full_like(values, label), reduction="none")
    return losses.mean(dim=-1).sum(), weight.detach()
