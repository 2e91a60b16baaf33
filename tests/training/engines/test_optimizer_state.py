"""Optimizer state by parameter name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import Adafactor

from imsm.training.engines.optimizer_state import (
    load_param_state_dict,
    load_schedule_state_dict,
    param_state_dict,
    schedule_state_dict,
)


def build(kind: str) -> tuple[dict[torch.Tensor, str], Optimizer, LambdaLR]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(2))]
    groups: list[dict[str, Any]] = [{"params": [p], "name": name} for p, name in zip(parameters, "ab", strict=True)]
    optimizer = AdamW(groups) if kind == "adamw" else Adafactor(groups, lr=0.1, relative_step=False)
    names = {parameters[0]: "layer.weight", parameters[1]: "layer.bias"}
    return names, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))


def step(names: dict[torch.Tensor, str], optimizer: Optimizer, lr_scheduler: LambdaLR, factor: float) -> None:
    for parameter in names:
        parameter.grad = factor * torch.ones_like(parameter)
    optimizer.step()
    lr_scheduler.step()


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_a_loaded_optimizer_makes_the_same_steps(kind: str) -> None:
    names, optimizer, lr_scheduler = build(kind)
    step(names, optimizer, lr_scheduler, 1.0)
    tensors, values = param_state_dict(optimizer, names)
    assert {key.rpartition(".")[0] for key in {**tensors, **values}} == {"layer.weight", "layer.bias"}
    schedule = schedule_state_dict(optimizer, lr_scheduler)
    loaded_names, loaded, loaded_scheduler = build(kind)
    for parameter, other in zip(names, loaded_names, strict=True):
        other.data.copy_(parameter)
    load_param_state_dict(loaded, loaded_names, {**tensors, **values})
    load_schedule_state_dict(loaded, loaded_scheduler, schedule)
    assert [group["lr"] for group in loaded.param_groups] == [group["lr"] for group in optimizer.param_groups]
    step(names, optimizer, lr_scheduler, -2.0)
    step(loaded_names, loaded, loaded_scheduler, -2.0)
    for parameter, other in zip(names, loaded_names, strict=True):
        assert torch.equal(parameter, other)


def test_loaded_state_is_a_copy() -> None:
    names, optimizer, lr_scheduler = build("adamw")
    step(names, optimizer, lr_scheduler, 1.0)
    tensors, values = param_state_dict(optimizer, names)
    other_names, other, _ = build("adamw")
    load_param_state_dict(other, other_names, {**tensors, **values})
    other.state[next(iter(other_names))]["exp_avg"].zero_()
    assert tensors["layer.weight.exp_avg"].abs().sum() > 0
