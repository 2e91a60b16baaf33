"""Processes that run different numbers of passes; `tests/models/backbones/test_sharded.py` runs them for real."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from imsm.distributed.lock_step import LockStep
from imsm.utils.errors import RunError


class Layer(nn.Module):
    """Stands for a sharded layer; records when it is gathered and when it runs."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def unshard(self) -> None:
        self.calls.append(f"gather {self.name}")

    def reshard(self) -> None:
        self.calls.append(f"free {self.name}")

    def reset_iter_state(self) -> None:
        self.calls.append(f"reset {self.name}")

    def forward(self, x: int) -> int:
        if x < 0:
            raise RuntimeError("out of memory")
        self.calls.append(f"run {self.name}")
        return x


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def layers(calls: list[str]) -> list[Layer]:
    return [Layer("1", calls), Layer("2", calls)]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> Callable[..., None]:
    """Set how many other processes want a pass each time that the processes count."""

    def plan(*counts: int) -> None:
        remaining = iter(counts)

        def all_reduce(total: torch.Tensor) -> None:
            calls.append("count")
            total += next(remaining)

        monkeypatch.setattr("imsm.distributed.lock_step.distributed.all_reduce", all_reduce)

    return plan


def test_the_processes_count_before_each_pass_and_help_until_none_wants_one(
    layers: list[Layer], calls: list[str], others: Callable[..., None]
) -> None:
    others(1, 2, 0)
    with LockStep(layers, device=torch.device("cpu")):
        for layer in layers:
            layer(0)
    helped = ["gather 1", "free 1", "gather 2", "free 2"]
    assert calls == ["count", "run 1", "run 2", "count", *helped, "count", "reset 1", "reset 2"]
    for layer in layers:  # outside the block nothing is counted
        layer(0)
    assert calls[-2:] == ["run 1", "run 2"]


def test_a_pass_that_failed_between_two_layers_cannot_be_repeated(
    layers: list[Layer], calls: list[str], others: Callable[..., None]
) -> None:
    others(0, 0)
    expected = pytest.raises(RunError, match=r"evaluation.batch_size: .* set a smaller value")
    with expected, LockStep(layers, device=torch.device("cpu")):
        layers[0](0)
        with pytest.raises(RuntimeError):
            layers[1](-1)
        layers[0](0)
    assert calls == ["count", "run 1"]
