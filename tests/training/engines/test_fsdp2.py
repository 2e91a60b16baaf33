"""Sums of gradients; `test_deepspeed.py` trains with two processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from imsm.distributed.context import DistributedContext
from imsm.training.engines.fsdp2 import Fsdp2Engine

ELSEWHERE = 3
"""Index of the weight that only the other process uses."""


class Model(nn.Module):
    """A used weight in each dtype, and weights that this process, or no process, uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))
        self.low = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
        self.elsewhere, self.unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def loss(self) -> torch.Tensor:
        return (self.first**2).sum() + 5 * self.second.sum() + self.low.float().sum()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> Fsdp2Engine:
    """An engine whose only other process has the same gradients, and one of ones for `elsewhere`."""

    sizes: list[int] = []

    def all_reduce(values: torch.Tensor) -> None:
        values.mul_(2)
        if not sizes:  # first the numbers of processes with a gradient
            values[ELSEWHERE] = 1
        elif values.dtype == torch.float32:
            values[-2:] = 1
        sizes.append(len(values))

    monkeypatch.setattr("imsm.training.engines.fsdp2.distributed.all_reduce", all_reduce)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    return Fsdp2Engine(
        model,  # type: ignore[arg-type]
        optimizer=optimizer,
        lr_scheduler=SimpleNamespace(step=lambda: None),  # type: ignore[arg-type]
        max_grad_norm=None,
        device=torch.device("cpu"),
        dist_context=DistributedContext(),
    )


def test_gradients_are_summed_after_the_last_micro_batch_of_a_step(model: Model, engine: Fsdp2Engine) -> None:
    engine.backward(model.loss(), last=False)
    assert torch.equal(model.first.grad, torch.tensor([2.0, 4.0]))  # only this process's
    engine.backward(model.loss(), last=True)
    assert torch.equal(model.first.grad, torch.tensor([8.0, 16.0]))
    assert torch.equal(model.second.grad, torch.tensor([[20.0]]))
    assert model.low.grad.dtype == torch.bfloat16 and model.low.grad.item() == 4.0
    # without a gradient in any process the optimizer skips a weight, as it does in one process
    assert torch.equal(model.elsewhere.grad, torch.ones(2)) and model.unused.grad is None
    with engine.full_grads():
        assert torch.equal(model.first.grad, torch.tensor([8.0, 16.0]))
    assert engine.step() == pytest.approx((8**2 + 16**2 + 20**2 + 4**2 + 2) ** 0.5, rel=1e-3)
    assert torch.equal(model.elsewhere, -torch.ones(2)) and model.first.grad is None
