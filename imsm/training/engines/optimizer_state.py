"""Optimizer state keyed by parameter name, so that any engine can load it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

ParamNames = Mapping[torch.Tensor, str]
"""Parameter -> its name in the model."""


def param_state_dict(optimizer: Optimizer, names: ParamNames) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the per-parameter state as "<parameter>.<key>": CPU tensors, and other values."""
    state = {
        f"{names[parameter]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    tensors = {key: value.detach().cpu() for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def load_param_state_dict(optimizer: Optimizer, names: ParamNames, state: Mapping[str, Any]) -> None:
    """Load `param_state_dict` into an optimizer over parameters of the same names."""
    by_param: dict[str, dict[str, Any]] = {}
    for full_key, value in state.items():
        # from the right: parameter names contain dots, keys do not
        name, _, key = full_key.rpartition(".")
        by_param.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in by_param.get(names[parameter], {}).items():
                if isinstance(value, torch.Tensor):
                    # torch keeps the step count, a scalar, on the CPU
                    value = value.to(value.device if value.ndim == 0 else parameter.device, copy=True)
                optimizer.state[parameter][key] = value


def schedule_state_dict(optimizer: Optimizer, lr_scheduler: LRScheduler) -> dict[str, Any]:
    """Return the options of each parameter group and the LR scheduler's state, as JSON values."""
    groups = {
        group["name"]: {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    }
    return {"groups": groups, "schedule": lr_scheduler.state_dict()}


def load_schedule_state_dict(optimizer: Optimizer, lr_scheduler: LRScheduler, state: Mapping[str, Any]) -> None:
    """Load what `schedule_state_dict` returned."""
    # by name, so that the state does not depend on the order of the groups
    for group in optimizer.param_groups:
        group.update(state["groups"][group["name"]])
    lr_scheduler.load_state_dict(state["schedule"])


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the current learning rate of each parameter group by name."""
    return {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
