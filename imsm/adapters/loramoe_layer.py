"""A linear layer with LoRAMoE's experts, and the side channel on which its routing is collected.

    g = softmax(W_r x)                      in float32, x without dropout
    y = W x + s sum_i g_i B_i A_i drop(x)   s = alpha / rank

All experts are computed as one low-rank product whose N·r features are weighted by the gates.

Legend: B batch, T positions, N experts, r rank of each.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional

from imsm.errors import UserError


class RoutingRecorder:
    """What passes between a training step and the layers besides activations.

    A step opens it with what is known of the batch; every layer then leaves the gates' sums; the
    step closes it before its backward pass, so that a layer that gradient checkpointing
    recomputes leaves nothing a second time.
    """

    def __init__(self) -> None:
        self._counted: torch.Tensor | None = None  # (B, T), 1 where a position counts
        self._open = False
        self._masses: list[torch.Tensor] = []

    def open(self, counted: torch.Tensor) -> None:
        """Begin a forward pass over a batch; ``counted`` (B, T) is 1 where a position counts."""
        self._counted = counted
        self._open = True
        self._masses = []

    def collect(self, gates: torch.Tensor) -> None:
        """Take one layer's gates, (B, T, N) or (B·T, N).

        Raises:
            UserError: the layer saw only some of the batch's tokens (it is an expert of a
                backbone's own mixture, say), so that whose they are is not known.
        """
        if self._counted is None:
            return
        if gates[..., 0].numel() != self._counted.numel():
            if not self._open:
                return
            raise UserError(
                f"the balancing constraint balances whole batches of {self._counted.numel()} "
                f"positions, and a layer saw {gates[..., 0].numel()}: set peft.blc_weight=0, or "
                "choose modules that see every token by peft.target_roles"
            )
        # A recomputed layer must do the same operations as the first time, so the sum is always
        # computed and only kept while this is open.
        by_row = gates.reshape(*self._counted.shape, gates.shape[-1])
        mass = (by_row * self._counted[..., None]).sum(dim=1)
        if self._open:
            self._masses.append(mass)

    def close(self) -> torch.Tensor:
        """What was collected, (layers, B, N); from now on nothing is."""
        masses, self._masses, self._open = self._masses, [], False
        if not masses:
            raise RuntimeError(
                "no layer left its routing: the balancing constraint needs a pass in training mode "
                "with gradients, and no reentrant gradient checkpointing"
            )
        return torch.stack(masses)


class LoraMoeLinear(nn.Module):
    """See the formula above; ``_disable_adapters`` makes it the linear layer that it wraps.

    Args:
        base_layer: W, which stays as it is.
        experts: N.
        rank: r.
        alpha: the update is scaled by alpha / rank.
        dropout: on the experts' input.
        per_expert_dropout: draw a mask for every expert.
    """

    adapter_layer = True

    def __init__(
        self,
        base_layer: nn.Linear,
        *,
        experts: int,
        rank: int,
        alpha: int,
        dropout: float,
        per_expert_dropout: bool = False,
    ) -> None:
        super().__init__()
        self._disable_adapters = False
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.experts, self.rank = experts, rank
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.per_expert_dropout = per_expert_dropout
        self.routing: RoutingRecorder | None = None
        device = base_layer.weight.device

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=torch.float32, device=device))

        self.router = empty(experts, self.in_features)  # W_r
        self.down = empty(experts * rank, self.in_features)  # all A_i
        self.up = empty(experts * rank, self.out_features)  # all B_i, transposed
        for start in (self.router, self.down):
            nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    @property
    def weight(self) -> torch.Tensor:
        """W: some backbones look at it."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of W, if it has one."""
        return self.base_layer.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the base layer's dtype."""
        plain = self.base_layer(rows)
        if self._disable_adapters:
            return plain
        features = rows.to(self.down.dtype)
        gates = self.gates(features)
        if self.routing is not None and self.training and torch.is_grad_enabled():
            self.routing.collect(gates)
        low = self._low(features).unflatten(-1, (self.experts, self.rank))
        weighted = (low * gates[..., None]).flatten(-2)
        return (plain + self.scaling * (weighted @ self.up)).to(plain.dtype)

    def gates(self, features: torch.Tensor) -> torch.Tensor:
        """The router's probabilities, (..., in) -> (..., N), in float32 under autocast too."""
        device = features.device.type
        autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return functional.linear(features, self.router).softmax(dim=-1)

    def _low(self, features: torch.Tensor) -> torch.Tensor:
        """All A_i drop(x), (..., N·r)."""
        if not (self.per_expert_dropout and self.training and self.dropout.p):
            return functional.linear(self.dropout(features), self.down)
        experts = self.down.unflatten(0, (self.experts, self.rank))
        return torch.cat([functional.linear(self.dropout(features), each) for each in experts], -1)
