"""What an engine is: the place where a loss becomes a step, on one process or on many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from imsm.distributed.context import DistributedContext

if TYPE_CHECKING:
    import torch

    from imsm.models.siamese.model import SiameseOutput


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm that is NaN or infinite; nothing was moved."""


class PartialStepError(RuntimeError):
    """Memory ran out while the parameters moved: they are those of no step."""


class Engine(Protocol):
    """The training loop's view of its surroundings; every process calls it alike.

    A step is: ``forward`` and ``backward`` for each micro-batch, then ``step`` once. Gradients are
    whole between them inside ``gradients``, the trainables are whole inside ``values``, wherever
    they lie otherwise.
    """

    device: torch.device
    dist_context: DistributedContext

    def forward(self, **inputs: Any) -> SiameseOutput:
        """The model's own pass."""

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch's share of the loss; ``last`` of the step."""

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""

    def full_grads(self) -> AbstractContextManager[None]:
        """Inside, every trainable's ``grad`` is the step's, summed over processes and clipped.

        Raises:
            NotFiniteError: their norm is not finite.
        """

    def step(self) -> float:
        """Clip, move the parameters, advance the schedule, forget the gradients.

        Returns:
            The gradients' norm before clipping.

        Raises:
            NotFiniteError: that norm is not finite.
        """

    def full_params(self) -> AbstractContextManager[None]:
        """Inside, every trainable has its values; what all processes change alike is kept."""

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step to come, by parameter group ("adapter", "gate")."""

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """The trainable parameters by name, whole, on the CPU."""

    def load_trainables(self, values: dict[str, torch.Tensor]) -> None:
        """Go on from what ``trainables`` returned."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Optimizer and schedule: tensors as "<parameter>.<name>", and what JSON can hold.

        They are whole, so that any other engine can go on from them.
        """

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
