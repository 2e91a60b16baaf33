"""LoRAMoE (Dou et al., 2024, arXiv 2312.09979): N low-rank experts and a dense router per layer.

    g = softmax(W_r x)                                      W_r: N x in, in float32
    y = W x + (lora_alpha / r) sum_i g_i B_i A_i x          A_i: r x in, B_i: out x r

The localized balancing constraint assigns half of the experts to each of two task types:

    L_blc = var(Z) / mean(Z)^2,   Z_be = Q_be (1 + delta) if e belongs to the type of b, else (1 - delta)

where Q_be is the routing weight of expert e summed over the positions of example b. It is off with
blc_weight=0, as in the script of the authors' code.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from imsm.models.adapters.base import AdapterSpec, TrainingCallbacks
from imsm.models.adapters.custom import CustomConfig, LinearTuner, LinearTunerLayer, register_adapter
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count, NotNegative, Probability


@dataclass
class LoraMoeConfig(CustomConfig):
    """PEFT configuration of LoRAMoE.

    Attributes:
        num_experts: N.
        r: rank of each expert.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: on the input of the experts, not of the router.
        per_expert_dropout: draw one dropout mask per expert, as the authors' code does.
    """

    num_experts: int = 8
    r: int = 4
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    per_expert_dropout: bool = False


class RoutingRecorder:
    """Collects the router outputs of all layers during one forward pass of a training step."""

    def __init__(self) -> None:
        self._counted: torch.Tensor | None = None  # (B, T), 1 where a position counts
        self._open = False
        self._masses: list[torch.Tensor] = []

    def open(self, counted: torch.Tensor) -> None:
        """Start recording a batch; ``counted`` (B, T) is 1 where a position counts."""
        self._counted = counted
        self._open = True
        self._masses = []

    def collect(self, gates: torch.Tensor) -> None:
        """Record the gates of one layer, (B, T, N) or (B·T, N).

        Raises:
            UserError: the layer received only some tokens of the batch (an expert of a
                mixture-of-experts backbone, for example), so their examples are unknown.
        """
        if self._counted is None:
            return
        if gates[..., 0].numel() != self._counted.numel():
            if not self._open:
                return
            raise UserError(
                f"peft.blc_weight: the balancing constraint needs all {self._counted.numel()} positions of a batch, "
                f"and a layer received {gates[..., 0].numel()}; set peft.blc_weight=0, or choose modules that "
                "process every token by peft.target_roles"
            )
        # Gradient checkpointing must recompute the same operations: the sum is computed when closed too.
        by_example = gates.reshape(*self._counted.shape, gates.shape[-1])
        mass = (by_example * self._counted[..., None]).sum(dim=1)
        if self._open:
            self._masses.append(mass)

    def close(self) -> torch.Tensor:
        """Stop recording and return the routing weights per example, (layers, B, N).

        Close before the backward pass: layers that gradient checkpointing recomputes would be
        recorded twice.
        """
        masses, self._masses, self._open = self._masses, [], False
        if not masses:
            raise RuntimeError(
                "no layer recorded its routing: the balancing constraint needs a forward pass in training mode "
                "with gradients, and no reentrant gradient checkpointing"
            )
        return torch.stack(masses)


class LoraMoeLinear(LinearTunerLayer):
    """A linear layer with N low-rank experts and a router."""

    adapter_layer_names = ("loramoe_router", "loramoe_A", "loramoe_B")

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: LoraMoeConfig) -> None:
        super().__init__(base_layer, adapter_name, config)
        self.num_experts, self.r = config.num_experts, config.r
        self.scaling = config.lora_alpha / config.r
        self.dropout = nn.Dropout(config.lora_dropout)
        self.per_expert_dropout = config.per_expert_dropout
        # Set by `BalancingLossCallback`; None if the constraint is off.
        self.routing: RoutingRecorder | None = None
        # One matrix for all experts: one large product in place of N small ones.
        self.add_parameter("loramoe_router", self.num_experts, self.in_features)  # W_r
        self.add_parameter("loramoe_A", self.num_experts * self.r, self.in_features)  # all A_i
        self.add_parameter("loramoe_B", self.num_experts * self.r, self.out_features)  # all B_i, transposed
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    @property
    def router(self) -> torch.Tensor:
        """W_r, (N, in)."""
        return self.parameter("loramoe_router")

    @property
    def down(self) -> torch.Tensor:
        """All A_i, (N·r, in)."""
        return self.parameter("loramoe_A")

    @property
    def up(self) -> torch.Tensor:
        """All B_i, transposed: (N·r, out)."""
        return self.parameter("loramoe_B")

    def reset_parameters(self) -> None:
        """Initialize the router and A as `nn.Linear` does, B with zeros."""
        # The router draws first; recorded runs depend on the order.
        for weight in (self.router, self.down):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the dtype of the base layer."""
        result: torch.Tensor = self.base_layer(x)
        if self.disable_adapters:
            return result
        features = x.to(self.down.dtype)
        gates = self.gates(features)
        # Only a training pass is recorded: gates without gradients could not balance the routers.
        if self.routing is not None and self.training and torch.is_grad_enabled():
            self.routing.collect(gates)
        low: torch.Tensor = self._project_down(features).unflatten(-1, (self.num_experts, self.r))
        # sum_i g_i B_i (A_i x) as one product with the concatenated B_i: gates weight the rank dimension.
        weighted = (low * gates[..., None]).flatten(-2)
        return (result + self.scaling * (weighted @ self.up)).to(result.dtype)

    def gates(self, features: torch.Tensor) -> torch.Tensor:
        """Router probabilities, (..., in) -> (..., N), in float32 under autocast too."""
        device = features.device.type
        # bfloat16 has 8 significant bits, too few for nearly equal probabilities.
        autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            logits: torch.Tensor = functional.linear(features, self.router)
            return logits.softmax(dim=-1)

    def _project_down(self, features: torch.Tensor) -> torch.Tensor:
        """A_i dropout(x) of all experts, (..., N·r)."""
        # Without active dropout both variants are equal, and one product is faster.
        if not (self.per_expert_dropout and self.training and self.dropout.p):
            return functional.linear(self.dropout(features), self.down)
        experts = self.down.unflatten(0, (self.num_experts, self.r))
        return torch.cat([functional.linear(self.dropout(features), each) for each in experts], -1)


class LoraMoeModel(LinearTuner):
    """Wraps linear layers with `LoraMoeLinear`."""

    tuner_layer_cls = LoraMoeLinear

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        # Random values are drawn target by target, not in the order of the modules: recorded runs depend on it.
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraMoeLinear)}
        targets = config.target_modules
        suffixes = [f".{target}" for target in targets] if isinstance(targets, list) else [""]
        for suffix in suffixes:
            for name, layer in layers.items():
                if f".{name}".endswith(suffix):
                    layer.reset_parameters()


register_adapter("loramoe", config=LoraMoeConfig, tuner=LoraMoeModel)


class BalancingLossCallback(TrainingCallbacks):
    """Adds the localized balancing constraint of all `LoraMoeLinear` layers to the loss."""

    def __init__(self, model: nn.Module, *, weight: float, delta: float, mask_padding: bool) -> None:
        self.weight, self.delta, self.mask_padding = weight, delta, mask_padding
        self.routing = RoutingRecorder()
        self._task_types: torch.Tensor | None = None
        for layer in model.modules():
            if isinstance(layer, LoraMoeLinear):
                layer.routing = self.routing

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Start recording a micro-batch with mask (B, T) and task types (B,)."""
        # The authors' code counts padding too, hence the option.
        self.routing.open(attention_mask if self.mask_padding else torch.ones_like(attention_mask))
        self._task_types = task_types

    def auxiliary_loss(self) -> torch.Tensor:
        """Return the weighted constraint of the recorded forward pass, summed over all layers."""
        assert self._task_types is not None
        terms = localized_imbalance(self.routing.close(), self._task_types, delta=self.delta)
        return self.weight * terms.sum()


def localized_imbalance(masses: torch.Tensor, task_types: torch.Tensor, *, delta: float) -> torch.Tensor:
    """Compute L_blc per layer, (layers,), from Q (layers, B, N) and task types 0 or 1 (B,)."""
    experts = masses.shape[-1]
    in_first_half = torch.arange(experts, device=masses.device) < experts // 2
    own = in_first_half == (task_types[:, None] == 1)  # (B, N)
    weighted = (masses * torch.where(own, 1 + delta, 1 - delta)).flatten(1)
    return weighted.var(dim=1) / (weighted.mean(dim=1).square() + 1e-10)


def loramoe(
    *,
    target_modules: list[str],
    num_experts: Count,
    r: Count,
    lora_alpha: Count,
    lora_dropout: Probability,
    per_expert_dropout: bool,
    blc_weight: NotNegative,
    blc_alpha: Probability,
    mask_padding: bool,
) -> AdapterSpec:
    """Build LoRAMoE on the given linear layers.

    ``blc_weight`` is the factor of the balancing constraint in the loss (0 disables it), ``blc_alpha``
    its delta; ``mask_padding`` excludes padding from it. The others are those of `LoraMoeConfig`.

    Raises:
        UserError: the constraint needs an even number of experts.
    """
    if blc_weight and num_experts % 2:
        raise UserError(
            f"peft.num_experts={num_experts}: the balancing constraint needs an even number of experts; "
            f"set peft.num_experts={num_experts + 1}, or peft.blc_weight=0 for no constraint"
        )
    config = LoraMoeConfig(
        task_type="CAUSAL_LM",
        target_modules=target_modules,
        num_experts=num_experts,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        per_expert_dropout=per_expert_dropout,
    )

    def callbacks(model: nn.Module, steps: int) -> BalancingLossCallback:
        return BalancingLossCallback(model, weight=blc_weight, delta=blc_alpha, mask_padding=mask_padding)

    return AdapterSpec(config, callbacks if blc_weight else None)
