"""LoRAMoE on tiny models, perturbed, and its equations once more in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from imsm.models.adapters.base import AdapterSpec
from imsm.models.adapters.loramoe import LoraMoeLinear, loramoe

MLP = ["gate_proj", "up_proj", "down_proj"]
EXPERTS, RANK, ALPHA = 4, 3, 3


def tiny_loramoe(**changes: Any) -> AdapterSpec:
    """Four experts on the MLP, with the constraint."""
    arguments: dict[str, Any] = {
        "target_modules": MLP,
        "num_experts": EXPERTS,
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "per_expert_dropout": False,
        "blc_weight": 0.5,
        "blc_alpha": 0.1,
        "mask_padding": True,
    }
    return loramoe(**{**arguments, **changes})


def gates_in_numpy(layer: LoraMoeLinear, rows: torch.Tensor) -> np.ndarray:
    """softmax(W_r x), (..., N)."""
    logits = as_numpy(rows) @ as_numpy(layer.router).T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def output_in_numpy(layer: LoraMoeLinear, rows: torch.Tensor) -> np.ndarray:
    """W x + alpha / rank * sum_i g_i B_i A_i x, one expert after the other."""
    x = as_numpy(rows)
    gates = gates_in_numpy(layer, rows)
    y = x @ as_numpy(layer.base_layer.weight).T
    if layer.base_layer.bias is not None:
        y = y + as_numpy(layer.base_layer.bias)
    for expert in range(layer.num_experts):
        own = slice(expert * layer.r, (expert + 1) * layer.r)
        a, b = as_numpy(layer.down[own]), as_numpy(layer.up[own]).T  # (r, in), (out, r)
        y = y + gates[..., expert : expert + 1] * (layer.scaling * (x @ a.T) @ b.T)
    return y


def imbalance_in_numpy(mass: np.ndarray, task_types: list[int], *, delta: float, epsilon: float = 1e-10) -> float:
    """L_blc of one layer, entry by entry; ``mass`` is Q, (B, N)."""
    experts = mass.shape[1]
    entries = []
    for row, task_type in zip(mass, task_types, strict=True):
        for expert, value in enumerate(row):
            first = expert < experts / 2
            own = (task_type == 1 and first) or (task_type == 0 and not first)
            entries.append(value * (1 + delta if own else 1 - delta))
    mean = sum(entries) / len(entries)
    variance = sum((entry - mean) ** 2 for entry in entries) / (len(entries) - 1)
    return variance / (mean**2 + epsilon)


def layers_of(model: nn.Module) -> list[LoraMoeLinear]:
    return [module for module in model.modules() if isinstance(module, LoraMoeLinear)]


def as_numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().numpy()
