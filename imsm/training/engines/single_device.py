"""The engine of one process on one device: plain torch."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from imsm.distributed.context import DistributedContext
from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.optimizer_state import load_named_state, load_plain_state, named_state, plain_state
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure: what was the peak before does not count (a sweep's earlier members)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is in use now


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since the reset: of the GPU's allocator, or of the process on a CPU.

    A process's memory is known on Linux alone; elsewhere None.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return 1024 * int(value.split()[0])
    return None


def choose_device(name: str) -> torch.device:
    """The device that ``name`` ("auto", "cpu", "cuda") stands for on this machine.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UserError("engine.device=cuda: torch sees no GPU here; use engine.device=auto or cpu")
    return torch.device(name)


class SingleDeviceEngine:
    """See `imsm.training.engines.base.Engine`.

    Args:
        model: what is trained.
        optimizer: of its trainable parameters.
        schedule: of the optimizer.
        clip_norm: of the gradients; None: no clipping.
        device: where the model is.
    """

    def __init__(
        self,
        model: SiameseForCausalLM,
        *,
        optimizer: Optimizer,
        schedule: LRScheduler,
        clip_norm: float | None,
        device: torch.device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.device = device
        self.dist_context = DistributedContext()
        self._names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._norm: float | None = None

    def forward(self, **inputs: Any) -> SiameseOutput:
        """The model's own pass."""
        output: SiameseOutput = self.model(**inputs)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        loss.backward()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The values as they are: there is no other process."""
        return list(values)

    @contextmanager
    def full_grads(self) -> Iterator[None]:
        """Clipped gradients; the parameters have them anyway."""
        self._clip()
        yield

    def step(self) -> float:
        """Clip unless that is done, move the parameters, advance the schedule."""
        norm = self._clip()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._norm = None
        return norm

    @contextmanager
    def full_params(self) -> Iterator[None]:
        """The parameters have their values anyway."""
        yield

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step to come, by parameter group."""
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """The trainable parameters by name, on the CPU."""
        return {name: p.detach().cpu().contiguous() for p, name in self._names.items()}

    def load_trainables(self, values: dict[str, torch.Tensor]) -> None:
        """Go on from what ``trainables`` returned."""
        with torch.no_grad():
            for parameter, name in self._names.items():
                parameter.copy_(values[name])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Optimizer and schedule."""
        kept = named_state(self.optimizer, self._names)
        tensors = {key: v.detach().cpu() for key, v in kept.items() if isinstance(v, torch.Tensor)}
        plain = {key: value for key, value in kept.items() if key not in tensors}
        return tensors, {"plain": plain} | plain_state(self.optimizer, self.schedule)

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        load_named_state(self.optimizer, self._names, {**tensors, **rest["plain"]})
        load_plain_state(self.optimizer, self.schedule, rest)

    def _clip(self) -> float:
        if self._norm is None:
            limit = self.clip_norm if self.clip_norm is not None else math.inf
            self._norm = float(torch.nn.utils.clip_grad_norm_(list(self._names), limit))
        norm, finite = self._norm, math.isfinite(self._norm)
        if not finite:
            self._norm = None
            raise NonFiniteError(f"the gradient norm is {norm}")
        return norm
