"""Optimizers and schedules, by name; the gate is a parameter group of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from transformers import get_scheduler
from transformers.optimization import Adafactor

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from imsm.models.siamese.model import SiameseForCausalLM


def _adamw(groups: list[dict], weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def _adafactor(groups: list[dict], weight_decay: float) -> Optimizer:
    """At the learning rate that is asked for: no relative step, no scaling by the parameter."""
    return Adafactor(groups, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False)


OPTIMIZERS: dict[str, Callable[[list[dict], float], Optimizer]] = {"adamw": _adamw, "adafactor": _adafactor}
ELEMENTWISE = frozenset({"adamw"})
"""Those that treat each value by itself, so that ZeRO's flat shards give what whole matrices give.

The others look at rows and columns: several processes gather the gradients and all do the same.
"""


def build_optimizer(
    model: SiameseForCausalLM,
    *,
    name: str,
    learning_rate: float,
    gate_learning_rate: float | None,
    weight_decay: float,
) -> Optimizer:
    """The optimizer of a model's trainable parameters, in the groups "adapter" and "gate".

    Args:
        model: adapter and gate are what is trainable of it.
        name: one of ``OPTIMIZERS``.
        learning_rate: of the adapter.
        gate_learning_rate: of the gate; None: the same.
        weight_decay: of both.
    """
    gate = set(model.gate.parameters()) if model.gate is not None else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    rates = {"adapter": learning_rate, "gate": gate_learning_rate or learning_rate}
    members = {"adapter": [p for p in trainable if p not in gate], "gate": [p for p in trainable if p in gate]}
    groups = [
        {"params": members[group], "lr": rates[group], "name": group}
        for group in ("adapter", "gate")
        if members[group]
    ]
    return OPTIMIZERS[name](groups, weight_decay)


def build_schedule(optimizer: Optimizer, *, name: str, warmup_ratio: float, steps: int) -> LRScheduler:
    """A schedule of transformers', warming up over a share of ``steps`` optimizer steps."""
    warmup = math.ceil(warmup_ratio * steps)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
