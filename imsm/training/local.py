"""The engine of one process on one device: plain torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler


def choose_device(name: str) -> torch.device:
    """The device that ``name`` ("auto", "cpu", "cuda") stands for on this machine.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    from imsm.errors import UserError

    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UserError("engine.device=cuda: torch sees no GPU here; use engine.device=auto or cpu")
    return torch.device(name)


class LocalEngine:
    """See `imsm.training.engine.Engine`."""

    def __init__(
        self,
        *,
        optimizer: Optimizer,
        schedule: LRScheduler,
        clip_norm: float | None,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.device = device
        self._trainable = [p for group in optimizer.param_groups for p in group["params"]]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        loss.backward()

    def clip(self) -> float:
        """Clip the step's gradients; returns their norm before clipping."""
        limit = self.clip_norm if self.clip_norm is not None else math.inf
        return float(torch.nn.utils.clip_grad_norm_(self._trainable, limit))

    def step(self) -> None:
        """Move the parameters, advance the schedule, forget the gradients."""
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step to come, by parameter group."""
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Optimizer and schedule: tensors by "<parameter>.<name>", and what JSON can hold."""
        optimizer = self.optimizer.state_dict()
        tensors: dict[str, torch.Tensor] = {}
        plain: dict[str, Any] = {}
        for index, values in optimizer["state"].items():
            for name, value in values.items():
                target = tensors if isinstance(value, torch.Tensor) else plain
                target[f"{index}.{name}"] = value
        return tensors, {
            "plain": plain,
            "groups": optimizer["param_groups"],
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        state: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **rest["plain"]}.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})
        self.schedule.load_state_dict(rest["schedule"])
