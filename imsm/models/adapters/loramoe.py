"""LoRAMoE (Dou et al., 2024, arXiv 2312.09979): N low-rank experts and a dense router per layer.

    g = softmax(W_r x)                                      W_r: N x in, in float32
    y = W x + (alpha / rank) sum_i g_i B_i A_i x            A_i: rank x in, B_i: out x rank

The localised balancing constraint (`imsm.models.adapters.loramoe`) gives each of two task types
its own half of the experts; it is off at a weight of 0, as in the released code's script.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count, NotNegative, Probability

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


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


class BalancingLossCallback:
    """The constraint as hooks of a training loop (`imsm.models.adapters.base.TrainingCallbacks`).

    Args:
        model: the model whose layers are balanced.
        weight: of the constraint in the loss.
        delta: how far the two halves are pulled apart.
        mask_padding: leave padding out of Q; False: count all positions, as the released code.
    """

    needs_full_params = False

    def __init__(self, model: nn.Module, *, weight: float, delta: float, mask_padding: bool) -> None:
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


def localised_imbalance(masses: torch.Tensor, task_types: torch.Tensor, *, delta: float) -> torch.Tensor:
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


def loramoe(
    *,
    target_modules: list[str],
    experts: Count,
    rank: Count,
    alpha: Count,
    dropout: Probability,
    per_expert_dropout: bool,
    blc_weight: NotNegative,
    blc_alpha: Probability,
    mask_padding: bool,
) -> AdapterSpec:
    """LoRAMoE on the given modules.

    Args:
        target_modules: names of linear layers.
        experts: N.
        rank: of each expert.
        alpha: an expert's update is scaled by alpha / rank.
        dropout: on the experts' input, never on the router's.
        per_expert_dropout: a mask of its own for every expert, as the released code draws them.
        blc_weight: of the localised balancing constraint in the loss; 0: none.
        blc_alpha: delta, how far the constraint pulls the two halves of the experts apart.
        mask_padding: leave padding out of the routing that is balanced; False: the released code.

    Raises:
        UserError: the constraint needs an even number of experts.
    """
    check_arguments(experts=experts, blc_weight=blc_weight)
    config = LoraMoe(
        target_modules=target_modules,
        experts=experts,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        per_expert_dropout=per_expert_dropout,
    )

    def hooks(model: nn.Module, steps: int) -> BalancingLossCallback:
        from imsm.models.adapters.loramoe import BalancingLossCallback

        return BalancingLossCallback(model, weight=blc_weight, delta=blc_alpha, mask_padding=mask_padding)

    return AdapterSpec(config, hooks if blc_weight else None)


def check_arguments(*, experts: int, blc_weight: float) -> None:
    """What the arguments demand of each other; asked before anything is loaded too.

    Raises:
        UserError: the constraint needs an even number of experts.
    """
    if blc_weight and experts % 2:
        raise UserError(
            f"peft.experts={experts}: the balancing constraint gives each task type half of the "
            f"experts; set peft.experts={experts + 1}, or peft.blc_weight=0 for no constraint"
        )


@dataclass(frozen=True, kw_only=True)
class LoraMoe:
    """What a saved LoRAMoE adapter is made of; its values are those of `loramoe`."""

    target_modules: list[str]
    experts: int
    rank: int
    alpha: int
    dropout: float
    per_expert_dropout: bool

    def attach(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Put the experts beside the named linear layers of ``backbone``, in place.

        Raises:
            UserError: there is no such module, or it is not linear.
        """
        from imsm.models.adapters.custom import replace_linear_layers
        from imsm.models.adapters.loramoe import LoraMoeLinear

        return replace_linear_layers(
            backbone,
            self.target_modules,
            layer=lambda base: LoraMoeLinear(
                base,
                experts=self.experts,
                rank=self.rank,
                alpha=self.alpha,
                dropout=self.dropout,
                per_expert_dropout=self.per_expert_dropout,
            ),
        )
