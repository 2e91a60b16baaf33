"""The Engine protocol: backward, optimizer step and state, on one process or several."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from imsm.distributed.context import DistributedContext
from imsm.models.siamese.model import SiameseOutput


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm is NaN or infinite; no parameter was changed."""


class PartialStepError(RuntimeError):
    """Out of memory during the optimizer step; the parameters may be partly updated."""


class Engine(Protocol):
    """What the training loop needs; every process must make the same calls in the same order.

    One step is ``forward`` and ``backward`` for each micro-batch, then ``step`` once. In between,
    gradients are unsharded inside ``full_grads`` and parameters inside ``full_params``.
    """

    device: torch.device
    dist_context: DistributedContext

    def forward(self, **inputs: Any) -> SiameseOutput:
        """Run the model's forward."""

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients; ``last`` marks the step's last micro-batch."""

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes."""

    def full_grads(self) -> AbstractContextManager[None]:
        """Inside, every trainable's ``grad`` is the step's reduced and clipped gradient.

        Raises:
            NonFiniteError: The gradient norm is not finite.
        """

    def step(self) -> float:
        """Clip, update the parameters, step the LR scheduler and clear the gradients.

        Return the gradient norm before clipping; it is not finite if loss scaling skipped the update.

        Raises:
            NonFiniteError: The gradient norm is not finite, without loss scaling.
        """

    def full_params(self) -> AbstractContextManager[None]:
        """Inside, every trainable is unsharded; changes made in all processes persist."""

    def learning_rates(self) -> dict[str, float]:
        """Return the next step's learning rate per parameter group ("adapter", "gate")."""

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the unsharded trainable parameters by name, on the CPU."""

    def load_trainable_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Load what ``trainable_state_dict`` returned."""

    def optimizer_state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return optimizer and LR scheduler state, unsharded and independent of the engine.

        The first are tensors as "<parameter>.<key>", the second values that JSON can hold.
        """

    def load_optimizer_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Load what ``optimizer_state_dict`` of any engine returned."""
