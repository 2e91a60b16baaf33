"""What an engine is: the place where a loss becomes a step, on one process or on many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """The training loop's view of its surroundings.

    A step is: ``backward`` for each micro-batch, ``clip`` once, ``step`` once. Gradients can be
    read between ``backward`` and ``step`` (AdaLoRA does).
    """

    device: torch.device

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""

    def clip(self) -> float:
        """Clip the step's gradients; returns their norm before clipping."""

    def step(self) -> None:
        """Move the parameters, advance the schedule, forget the gradients."""

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step to come, by parameter group ("adapter", "gate")."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Optimizer and schedule: tensors by name, and what JSON can hold."""

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
