"""Optimizers and LR schedulers by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.optimization import Adafactor

from imsm.models.siamese.model import SiameseForCausalLM


def _adamw(groups: list[dict[str, Any]], weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def _adafactor(groups: list[dict[str, Any]], weight_decay: float) -> Optimizer:
    # use the configured learning rate: no relative step, no scaling by the parameter's norm
    return Adafactor(groups, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], Optimizer]] = {"adamw": _adamw, "adafactor": _adafactor}
ELEMENTWISE = frozenset({"adamw"})
"""Optimizers that update each element independently, so that ZeRO may flatten and shard them.

Others use rows and columns: every process gathers the gradients and makes the same update.
"""


def build_optimizer(
    model: SiameseForCausalLM,
    *,
    name: str,
    learning_rate: float,
    gate_learning_rate: float | None,
    weight_decay: float,
) -> Optimizer:
    """Return an optimizer of ``OPTIMIZERS`` with the parameter groups "adapter" and "gate".

    ``gate_learning_rate=None`` uses ``learning_rate`` for both groups.
    """
    # sets of parameters compare by identity; `in` on a list would compare tensors element by element
    gate = set(model.gate.parameters()) if model.gate is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p not in gate], "lr": learning_rate, "name": "adapter"},
        {"params": [p for p in trainable if p in gate], "lr": gate_learning_rate or learning_rate, "name": "gate"},
    ]
    return OPTIMIZERS[name]([group for group in groups if group["params"]], weight_decay)


def build_lr_scheduler(
    optimizer: Optimizer,
    *,
    lr_scheduler_type: str,
    warmup_ratio: float,
    num_training_steps: int,
    warmup_rounding: str = "up",
) -> LRScheduler:
    """Return transformers' scheduler; the warmup is a ratio of all training steps, rounded "up" or "down"."""
    round_steps = {"up": math.ceil, "down": math.floor}[warmup_rounding]
    num_warmup_steps = round_steps(warmup_ratio * num_training_steps)
    scheduler: LRScheduler = get_scheduler(lr_scheduler_type, optimizer, num_warmup_steps, num_training_steps)
    return scheduler
