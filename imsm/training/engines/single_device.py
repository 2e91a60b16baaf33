"""Single-process engine: plain torch on one device."""

import contextlib
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imsm.distributed.context import DistributedContext
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.optimizer_state import (
    learning_rates,
    load_param_state_dict,
    load_schedule_state_dict,
    param_state_dict,
    schedule_state_dict,
)
from imsm.utils.errors import UserError


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `peak_memory` reports; a sweep trains several runs in one process."""
    # an earlier run's tensors in reference cycles would count for this one
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        # Linux: 5 resets VmHWM to the current usage
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak bytes of the GPU allocator or the process; None on a CPU outside Linux."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return 1024 * int(value.split()[0])
    return None


def choose_device(name: str) -> torch.device:
    """Return the device for ``name`` ("auto", "cpu" or "cuda").

    Raises:
        UserError: "cuda" without a visible GPU.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UserError("engine.device=cuda: torch sees no GPU; use engine.device=auto or cpu")
    return torch.device(name)


class SingleDeviceEngine:
    """See `imsm.training.engines.base.Engine`; ``max_grad_norm=None`` disables clipping.

    With ``fp16`` the forward runs in float16 (autocast) and the loss is scaled. A step whose gradients
    overflow changes no parameter, lowers the scale and returns a gradient norm that is not finite.
    """

    def __init__(
        self,
        model: SiameseForCausalLM,
        *,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        max_grad_norm: float | None,
        device: torch.device,
        fp16: bool = False,
    ) -> None:
        self.fp16 = fp16
        # disabled, every method of the scaler does what plain torch does
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.model, self.optimizer, self.lr_scheduler = model, optimizer, lr_scheduler
        self.max_grad_norm, self.device, self.dist_context = max_grad_norm, device, DistributedContext()
        self._names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._grad_norm: float | None = None
        """Of the current step; None until its gradients are clipped."""

    def forward(self, **inputs: Any) -> SiameseOutput:
        """Run the model's forward."""
        precision = torch.autocast(self.device.type, torch.float16) if self.fp16 else contextlib.nullcontext()
        with precision:
            output: SiameseOutput = self.model(**inputs)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients."""
        self.scaler.scale(loss).backward()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the values unchanged."""
        return list(values)

    @contextmanager
    def full_grads(self) -> Iterator[None]:
        """Clip the gradients."""
        self._clip()
        yield

    def step(self) -> float:
        """Clip once per step, update the parameters, step the LR scheduler."""
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._grad_norm = None
        return norm

    @contextmanager
    def full_params(self) -> Iterator[None]:
        """Do nothing: the parameters are never sharded."""
        yield

    def learning_rates(self) -> dict[str, float]:
        """Return the next step's learning rate per parameter group."""
        return learning_rates(self.optimizer)

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the trainable parameters by name, on the CPU."""
        return {name: p.detach().cpu().contiguous() for p, name in self._names.items()}

    def load_trainable_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Load what ``trainable_state_dict`` returned."""
        with torch.no_grad():
            for parameter, name in self._names.items():
                parameter.copy_(state_dict[name])

    def optimizer_state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return optimizer and LR scheduler state."""
        tensors, plain = param_state_dict(self.optimizer, self._names)
        values = {"plain": plain} | schedule_state_dict(self.optimizer, self.lr_scheduler)
        return tensors, values | ({"scaler": self.scaler.state_dict()} if self.fp16 else {})

    def load_optimizer_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Load what ``optimizer_state_dict`` returned."""
        load_param_state_dict(self.optimizer, self._names, {**tensors, **values["plain"]})
        load_schedule_state_dict(self.optimizer, self.lr_scheduler, values)
        if self.fp16:
            self.scaler.load_state_dict(values["scaler"])

    def _clip(self) -> float:
        if self._grad_norm is None:
            limit = self.max_grad_norm if self.max_grad_norm is not None else math.inf
            self.scaler.unscale_(self.optimizer)
            # an infinite limit still measures the norm and changes no gradient
            norm = float(torch.nn.utils.clip_grad_norm_(list(self._names), limit))
            if not math.isfinite(norm):
                # the scaler has noted the overflow and skips the update, unless lower scales overflowed too
                if not self.fp16 or self.scaler.get_scale() < 1:
                    raise NonFiniteError(f"the gradient norm is {norm}")
                # for callbacks that add up gradients
                self.optimizer.zero_grad(set_to_none=False)
            self._grad_norm = norm
        return self._grad_norm
