"""An optimizer's state by the names of the parameters, so that any engine can go on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Names = Mapping[torch.Tensor, str]
"""A parameter's name in the model."""


def named_state(optimizer: Optimizer, names: Names) -> dict[str, Any]:
    """What the optimizer keeps of each parameter, as "<parameter>.<key>"."""
    return {
        f"{names[parameter]}.{key}": value
        for parameter, kept in optimizer.state.items()
        for key, value in kept.items()
    }


def load_named_state(optimizer: Optimizer, names: Names, values: Mapping[str, Any]) -> None:
    """Put what `named_state` returned into an optimizer over the same parameters.

    Tensors are copied to where the parameter lies (a step count stays where it is).
    """
    kept: dict[str, dict[str, Any]] = {}
    for full, value in values.items():
        name, _, key = full.rpartition(".")
        kept.setdefault(name, {})[key] = value
    for parameter in _parameters(optimizer):
        for key, value in kept.get(names[parameter], {}).items():
            if isinstance(value, torch.Tensor):
                place = value.device if value.ndim == 0 else parameter.device
                value = value.to(place, copy=True)
            optimizer.state[parameter][key] = value


def plain_state(optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
    """Each group's settings and the schedule, as JSON can hold them."""
    groups = {
        group["name"]: {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    }
    return {"groups": groups, "schedule": schedule.state_dict()}


def load_plain_state(optimizer: Optimizer, schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Put what `plain_state` returned back."""
    for group in optimizer.param_groups:
        group.update(state["groups"][group["name"]])
    schedule.load_state_dict(state["schedule"])


def _parameters(optimizer: Optimizer) -> Iterable[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
