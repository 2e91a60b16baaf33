"""LoRAMoE's localised balancing constraint: each of two task types has its half of the experts.

    Q[b,n] = sum_t g_n(x_bt)                    the routing mass of example b on expert n
    c[b,n] = 1 + delta   if n is in the half of b's task type (type 1: the first half)
             1 - delta   else
    L_blc  = var(Q∘c) / mean(Q∘c)^2             over all B·N entries, the variance unbiased

The loss gets the weighted sum of L_blc over all layers. Its minimum makes Q∘c constant: the half of
an example's own type is routed (1 - delta) / (1 + delta) as much as the other half. Which half is
called what makes no difference to training, since experts start alike.

A squared coefficient of variation is no sum over examples: cut into micro-batches the constraint
is their mean, and unlike the cross-entropy it depends on how a batch is cut.
"""

from __future__ import annotations

import torch
from torch import nn

from imsm.adapters.loramoe_layer import LoraMoeLinear, RoutingRecorder


class BalancingLossCallback:
    """The constraint as hooks of a training loop (`imsm.adapters.adapter.Hooks`).

    Args:
        model: the model whose layers are balanced.
        weight: of the constraint in the loss.
        delta: how far the two halves are pulled apart.
        mask_padding: leave padding out of Q; False: count all positions, as the released code.
    """

    needs_full_params = False

    def __init__(
        self, model: nn.Module, *, weight: float, delta: float, mask_padding: bool
    ) -> None:
        self.weight, self.delta, self.mask_padding = weight, delta, mask_padding
        self.routing = RoutingRecorder()
        self._task_types: torch.Tensor | None = None
        for layer in model.modules():
            if isinstance(layer, LoraMoeLinear):
                layer.routing = self.routing

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Note whose tokens the coming pass routes; (B, T) and (B,)."""
        counted = attention_mask if self.mask_padding else torch.ones_like(attention_mask)
        self.routing.open(counted)
        self._task_types = task_types

    def auxiliary_loss(self) -> torch.Tensor:
        """The weighted constraint of the pass since `before_forward`, over all layers."""
        assert self._task_types is not None
        terms = localised_imbalance(self.routing.close(), self._task_types, delta=self.delta)
        return self.weight * terms.sum()

    def after_backward(self, step: int) -> None:
        """Nothing to do."""

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing is kept from step to step."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to restore."""


def localised_imbalance(
    masses: torch.Tensor, task_types: torch.Tensor, *, delta: float
) -> torch.Tensor:
    """L_blc of each layer.

    Args:
        masses: Q, (layers, B, N) with an even N.
        task_types: 0 or 1 per example, (B,).
        delta: in [0, 1).

    Returns:
        (layers,).
    """
    experts = masses.shape[-1]
    in_first_half = torch.arange(experts, device=masses.device) < experts // 2
    own = in_first_half == (task_types[:, None] == 1)  # (B, N)
    weighted = (masses * torch.where(own, 1 + delta, 1 - delta)).flatten(1)
    return weighted.var(dim=1) / (weighted.mean(dim=1).square() + 1e-10)
