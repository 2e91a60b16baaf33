"""Multi-process engine: DeepSpeed ZeRO stages 1 to 3, optionally with CPU offload.

ZeRO averages gradients over processes, but a step's loss is a sum over the batch's tokens, so
every loss is multiplied by the number of processes. Parameters and optimizer state are read and
written unsharded through DeepSpeed's `safe_get_full_*` and `safe_set_full_*`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import sum_over_processes
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from imsm.training.engines import deepspeed_internals as internals
from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.optimizer_state import (
    learning_rates,
    load_param_state_dict,
    load_schedule_state_dict,
    param_state_dict,
    schedule_state_dict,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""State per element of an elementwise optimizer (AdamW), besides the step count."""


class DeepSpeedEngine:
    """See `imsm.training.engines.base.Engine`; requires an initialized process group.

    ZeRO shards the state of an ``elementwise`` optimizer; with any other one every process updates
    a full copy of the trainables. ``max_grad_norm=None`` disables clipping. ``config`` is the result
    of `deepspeed_config`. The model is unusable after `close`.

    Raises:
        UserError: The installed DeepSpeed version is not supported.
    """

    def __init__(
        self,
        model: SiameseForCausalLM,
        *,
        optimizer: Optimizer,
        elementwise: bool,
        lr_scheduler: LRScheduler,
        max_grad_norm: float | None,
        config: dict[str, Any],
        device: torch.device,
        dist_context: DistributedContext,
    ) -> None:
        deepspeed = internals.load_deepspeed(device=device, local_rank=dist_context.local_rank)
        self._zero_api, self._safe = deepspeed.zero, deepspeed.utils
        self.device, self.dist_context = device, dist_context
        self.optimizer, self.lr_scheduler, self.max_grad_norm = optimizer, lr_scheduler, max_grad_norm
        self._stage = int(config["zero_optimization"]["stage"])
        self._names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        zero_optimizer = optimizer
        if not elementwise:
            zero_optimizer = self._use_replicated_optimizer()
            # ZeRO's no-op optimizer has nothing to clip; `_clip` scales the copies' gradients
            config = {**config, "gradient_clipping": 0.0}
        self._engine, self._zero, *_ = deepspeed.initialize(model=model, optimizer=zero_optimizer, config=config)
        if elementwise:
            self._init_optimizer_state()

    def forward(self, **inputs: Any) -> SiameseOutput:
        """Run the model's forward."""
        if self._stage == 3:
            internals.gather_params(self._names, owner=self)
        output: SiameseOutput = self._engine(**inputs)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients."""
        # DeepSpeed would count micro-batches itself, but an epoch's last batch has fewer
        self._engine.set_gradient_accumulation_boundary(last)
        # scale_wrt_gas=False: the loss is already divided by the tokens of the global batch
        self._engine.backward(loss * self.dist_context.world_size, scale_wrt_gas=False)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes."""
        return sum_over_processes(values, device=self.device)

    @contextmanager
    def full_grads(self) -> Iterator[None]:
        """Set clipped, unsharded gradients on the parameters; ZeRO's own are unchanged."""
        grads = self._full_grads()
        self._clip(list(grads.values()))
        with self.full_params():
            for parameter, grad in grads.items():
                parameter.grad = grad
            try:
                yield
            finally:
                for parameter in grads:
                    parameter.grad = None

    def step(self) -> float:
        """Clip, update the parameters, step the LR scheduler."""
        # ZeRO's step runs in both cases, because it clears the gradients; with copies it changes nothing else
        norm = self._step_copies() if self._copies else None
        self._engine.step()
        if norm is None:
            global_norm = self._engine.get_global_grad_norm()
            overflow = internals.grad_norm_overflowed(self._zero) or global_norm is None
            norm = math.inf if overflow else float(global_norm)
            if not math.isfinite(norm):  # DeepSpeed has skipped the update
                raise NonFiniteError(f"the gradient norm is {norm}")
        self.lr_scheduler.step()
        return norm

    @contextmanager
    def full_params(self) -> Iterator[None]:
        """Unshard the parameters; changed ones are written back to ZeRO's fp32 copies."""
        with self._gathered():
            before = {p: p.detach().clone() for p in self._names}
            yield
            for parameter, old in before.items():
                if not torch.equal(parameter, old):
                    self._safe.safe_set_full_fp32_param(parameter, parameter.detach().clone())
                    if parameter in self._copies:
                        self._copies[parameter].data.copy_(parameter.detach())

    def learning_rates(self) -> dict[str, float]:
        """Return the next step's learning rate per parameter group."""
        return learning_rates(self.optimizer)

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the unsharded trainable parameters by name, on the CPU."""
        return {name: self._safe.safe_get_full_fp32_param(p).detach().cpu().clone() for p, name in self._names.items()}

    def load_trainable_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Load what ``trainable_state_dict`` returned."""
        with self.full_params(), torch.no_grad():
            for parameter, name in self._names.items():
                parameter.copy_(state_dict[name])

    def optimizer_state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return unsharded optimizer state and LR scheduler state."""
        schedule = schedule_state_dict(self.optimizer, self.lr_scheduler)
        if self._copies:
            tensors, plain = param_state_dict(self.optimizer, self._copy_names())
            return tensors, {"plain": plain} | schedule
        # all partitions have the same count: every group takes part in every step
        (step, *_) = [self.optimizer.state[partition]["step"] for partition in self._local_partitions()]
        tensors = {}
        for parameter, name in self._names.items():
            for key in _MOMENTS:
                moment = self._safe.safe_get_full_optimizer_state(parameter, key)
                tensors[f"{name}.{key}"] = moment.detach().cpu().clone()
            tensors[f"{name}.step"] = step.detach().cpu().clone()
        return tensors, {"plain": {}} | schedule

    def load_optimizer_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Load what ``optimizer_state_dict`` of any engine returned."""
        load_schedule_state_dict(self.optimizer, self.lr_scheduler, values)
        if self._copies:
            load_param_state_dict(self.optimizer, self._copy_names(), {**tensors, **values["plain"]})
            return
        steps = [value for key, value in tensors.items() if key.endswith(".step")]
        # a parameter that never had a gradient has no count or a lower one in plain torch
        step = max(steps, default=torch.tensor(0.0))
        for partition in self._local_partitions():
            self.optimizer.state[partition]["step"] = step.clone()
        for parameter, name in self._names.items():
            for key in _MOMENTS:
                moment = tensors.get(f"{name}.{key}")  # missing if the parameter never had a gradient
                if moment is not None:
                    self._safe.safe_set_full_optimizer_state(parameter, moment.to(self.device), key)

    def close(self) -> None:
        """Remove DeepSpeed's hooks and free its buffers and the model's parameters."""
        module = self._engine.module
        self._engine.destroy()
        internals.free_params(module)

    def _init_optimizer_state(self) -> None:
        """Create zero moments before the first step, so that all groups have state to save."""
        for partition in self._local_partitions():
            moments = {key: torch.zeros_like(partition) for key in _MOMENTS}
            self.optimizer.state[partition] = {"step": torch.tensor(0.0), **moments}
        internals.link_optimizer_state(self._zero, stage=self._stage)

    def _use_replicated_optimizer(self) -> Optimizer:
        """Point the optimizer at copies of the parameters; return a no-op optimizer for ZeRO."""
        groups = self.optimizer.param_groups
        no_op = torch.optim.SGD([{"params": group["params"], "name": group["name"]} for group in groups], lr=0.0)
        for group in groups:
            for parameter in group["params"]:
                self._copies[parameter] = torch.nn.Parameter(parameter.detach().clone())
            group["params"] = [self._copies[parameter] for parameter in group["params"]]
        return no_op

    def _step_copies(self) -> float:
        """Step the optimizer on the full copies, identically in all processes; return the grad norm."""
        grads = self._full_grads()
        norm = self._clip(list(grads.values()))
        # the gradients are reduced, so that the copies stay equal without communication
        for parameter, copy in self._copies.items():
            copy.grad = grads[parameter]
        self.optimizer.step()
        for parameter, copy in self._copies.items():
            copy.grad = None
            self._safe.safe_set_full_fp32_param(parameter, copy.detach().clone())
        return norm

    def _full_grads(self) -> dict[torch.Tensor, torch.Tensor]:
        return {p: self._safe.safe_get_full_grad(p).detach().clone() for p in self._names}

    def _clip(self, grads: list[torch.Tensor]) -> float:
        """Scale in place as `torch.nn.utils.clip_grad_norm_` does; return the norm before."""
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient norm is {norm}")
        if self.max_grad_norm is not None:
            # 1e-6 as in torch: the result must equal that of a single process
            scale = min(1.0, self.max_grad_norm / (norm + 1e-6))
            for grad in grads:
                grad.mul_(scale)
        return norm

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Gather stage 3's shards; rank 0's changes are broadcast on exit."""
        if self._stage < 3:
            yield
            return
        internals.release_params(self._names, owner=self)
        with self._zero_api.GatheredParameters(list(self._names), modifier_rank=0):
            # a module that runs inside (a prompt encoder) would release its own parameters
            internals.gather_params(self._names, owner=self)
            try:
                yield
            finally:
                internals.release_params(self._names, owner=self)

    def _local_partitions(self) -> list[torch.Tensor]:
        return internals.local_partitions(self._zero, stage=self._stage)

    def _copy_names(self) -> dict[torch.Tensor, str]:
        return {copy: self._names[parameter] for parameter, copy in self._copies.items()}
