"""The engine of several processes: DeepSpeed ZeRO, stages 1 to 3, with or without offload.

ZeRO averages gradients over the processes; a step's loss is a sum over its tokens, wherever they
are, so every loss is multiplied by the number of processes first. Parameters and optimizer state
leave and enter it whole, through DeepSpeed's `safe_get_full_*` and `safe_set_full_*`.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from imsm.distributed.context import DistributedContext
from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.optimizer_state import load_named_state, load_plain_state, named_state, plain_state

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What an elementwise optimizer keeps per value (AdamW), beside the number of steps."""


class DeepSpeedEngine:
    """See `imsm.training.engines.base.Engine`; the process group must be there.

    Args:
        model: what is trained; DeepSpeed takes it over.
        optimizer: of its trainable parameters.
        elementwise: whether the optimizer treats each value by itself. ZeRO then shares its work
            and state out; otherwise every process keeps whole copies and does the same on them.
        schedule: of the optimizer.
        clip_norm: of the gradients; None: no clipping.
        settings: `imsm.training.engines.deepspeed_config`.
        device: of this process.
        dist_context: this process and those beside it.
    """

    def __init__(
        self,
        model: SiameseForCausalLM,
        *,
        optimizer: Optimizer,
        elementwise: bool,
        schedule: LRScheduler,
        clip_norm: float | None,
        settings: dict[str, Any],
        device: torch.device,
        dist_context: DistributedContext,
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        os.environ.setdefault("LOCAL_RANK", str(dist_context.local_rank))  # DeepSpeed insists on it
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # importing sets it
        # gloo does without the extension that DeepSpeed would compile into the user's home
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        self.device, self.dist_context = device, dist_context
        self.optimizer, self.schedule, self.clip_norm = optimizer, schedule, clip_norm
        self._stage = int(settings["zero_optimization"]["stage"])
        self._names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        inner = optimizer
        if not elementwise:
            inner = self._use_replicated_optimizer()
            settings = {**settings, "gradient_clipping": 0.0}
        self._engine, self._zero, *_ = deepspeed.initialize(model=model, optimizer=inner, config=settings)
        if elementwise:
            self._init_optimizer_state()

    def forward(self, **inputs: Any) -> SiameseOutput:
        """The model's own pass."""
        if self._stage == 3:
            self._gather_params()
        output: SiameseOutput = self._engine(**inputs)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.dist_context.size, scale_wrt_gas=False)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return [float(value) for value in summed.tolist()]

    @contextmanager
    def full_grads(self) -> Iterator[None]:
        """Whole, clipped gradients on the parameters; ZeRO's own stay what they are."""
        whole = self._whole_gradients()
        self._clip(list(whole.values()))
        with self.full_params():
            for parameter, gradient in whole.items():
                parameter.grad = gradient
            try:
                yield
            finally:
                for parameter in whole:
                    parameter.grad = None

    def step(self) -> float:
        """Clip, move the parameters, advance the schedule."""
        norm = self._step_copies() if self._copies else None
        self._engine.step()
        if norm is None:
            found = self._engine.get_global_grad_norm()
            norm = math.inf if self._zero.overflow or found is None else float(found)
            if not math.isfinite(norm):  # DeepSpeed moved nothing
                raise NonFiniteError(f"the gradient norm is {norm}")
        self.schedule.step()
        return norm

    @contextmanager
    def full_params(self) -> Iterator[None]:
        """Every parameter whole; what was changed goes to ZeRO's own copies."""
        from deepspeed.utils import safe_set_full_fp32_param

        with self._gathered():
            before = {p: p.detach().clone() for p in self._names}
            yield
            for parameter, old in before.items():
                if not torch.equal(parameter, old):
                    safe_set_full_fp32_param(parameter, parameter.detach().clone())
                    if parameter in self._copies:
                        self._copies[parameter].data.copy_(parameter.detach())

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the step to come, by parameter group."""
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """The trainable parameters by name, whole, on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(p).detach().cpu().clone() for p, name in self._names.items()}

    def load_trainables(self, values: dict[str, torch.Tensor]) -> None:
        """Go on from what ``trainables`` returned."""
        with self.full_params(), torch.no_grad():
            for parameter, name in self._names.items():
                parameter.copy_(values[name])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Optimizer and schedule, whole."""
        plain = plain_state(self.optimizer, self.schedule)
        if self._copies:
            kept = named_state(self.optimizer, self._names_of_copies())
            tensors = {k: v.detach().cpu() for k, v in kept.items() if isinstance(v, torch.Tensor)}
            rest = {key: value for key, value in kept.items() if key not in tensors}
            return tensors, {"plain": rest} | plain
        from deepspeed.utils import safe_get_full_optimizer_state

        (steps, *_) = [self.optimizer.state[flat]["step"] for flat in self._local_partitions()]
        tensors = {}
        for parameter, name in self._names.items():
            for key in _MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, key)
                tensors[f"{name}.{key}"] = whole.detach().cpu().clone()
            tensors[f"{name}.step"] = steps.detach().cpu().clone()
        return tensors, {"plain": {}} | plain

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Go on from what ``state`` returned, here or in another engine."""
        load_plain_state(self.optimizer, self.schedule, rest)
        if self._copies:
            values = {**tensors, **rest["plain"]}
            load_named_state(self.optimizer, self._names_of_copies(), values)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        counts = [value for key, value in tensors.items() if key.endswith(".step")]
        steps = max(counts, default=torch.tensor(0.0))
        for flat in self._local_partitions():
            self.optimizer.state[flat]["step"] = steps.clone()
        for parameter, name in self._names.items():
            for key in _MOMENTS:
                whole = tensors.get(f"{name}.{key}")  # none of one that never had a gradient
                if whole is not None:
                    safe_set_full_optimizer_state(parameter, whole.to(self.device), key)

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers; the model is of no use after it."""
        module = self._engine.module
        self._engine.destroy()
        for parameter in module.parameters():  # something in stage 3 keeps hold of them
            parameter.data = parameter.data.new_empty(0)
            if hasattr(parameter, "ds_tensor"):
                parameter.ds_tensor = None

    # ------------------------------------------------------------------ inside

    def _init_optimizer_state(self) -> None:
        """The optimizer's state before the first step.

        Left to DeepSpeed, stages 1 and 2 would find the first group's moments alone, which they
        look for when that group has made its first step and the others have not.
        """
        for flat in self._local_partitions():
            kept = {key: torch.zeros_like(flat) for key in _MOMENTS}
            self.optimizer.state[flat] = {"step": torch.tensor(0.0), **kept}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _use_replicated_optimizer(self) -> Optimizer:
        """Give the optimizer copies of the parameters; returns one for ZeRO that moves nothing."""
        groups = self.optimizer.param_groups
        still = torch.optim.SGD([{"params": group["params"], "name": group["name"]} for group in groups], lr=0.0)
        for group in groups:
            for parameter in group["params"]:
                copy = torch.nn.Parameter(parameter.detach().clone())
                self._copies[parameter] = copy
            group["params"] = [self._copies[parameter] for parameter in group["params"]]
        return still

    def _step_copies(self) -> float:
        """The optimizer's step on the whole copies, alike in every process; their norm."""
        from deepspeed.utils import safe_set_full_fp32_param

        whole = self._whole_gradients()
        norm = self._clip(list(whole.values()))
        for parameter, copy in self._copies.items():
            copy.grad = whole[parameter]
        self.optimizer.step()
        for parameter, copy in self._copies.items():
            copy.grad = None
            safe_set_full_fp32_param(parameter, copy.detach().clone())
        return norm

    def _whole_gradients(self) -> dict[torch.Tensor, torch.Tensor]:
        from deepspeed.utils import safe_get_full_grad

        return {p: safe_get_full_grad(p).detach().clone() for p in self._names}

    def _clip(self, gradients: list[torch.Tensor]) -> float:
        """Scale them, in place, as `torch.nn.utils.clip_grad_norm_` does; the norm before."""
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient norm is {norm}")
        if self.clip_norm is not None:
            scale = min(1.0, self.clip_norm / (norm + 1e-6))
            for gradient in gradients:
                gradient.mul_(scale)
        return norm

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Stage 3 shares parameters out; the first process's changes are everybody's."""
        if self._stage < 3:
            yield
            return
        import deepspeed

        self._release_params()
        with deepspeed.zero.GatheredParameters(list(self._names), modifier_rank=0):
            self._gather_params()  # a module that runs in here (a prompt's encoder) would let go of its own
            try:
                yield
            finally:
                self._release_params()

    def _gather_params(self) -> None:
        """Have every trainable whole from a pass to the step after it, for losses on its values.

        In the first passes, whose order DeepSpeed still learns, it lets go even of parameters that
        are to persist; one that a module is said to work on stays.
        """
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        shared: list[Any] = list(self._names)  # with what DeepSpeed has put on them
        away = [p for p in shared if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
        if away:
            away[0].all_gather(away)
        for parameter in shared:
            parameter.ds_active_sub_modules.add(self)

    def _release_params(self) -> None:
        shared: list[Any] = list(self._names)
        for parameter in shared:
            parameter.ds_active_sub_modules.discard(self)

    def _local_partitions(self) -> list[torch.Tensor]:
        """This process's shares, one per group, that the optimizer moves."""
        if self._stage < 3:
            return list(self._zero.single_partition_of_fp32_groups)
        return list(self._zero.fp32_partitioned_groups_flat)

    def _names_of_copies(self) -> dict[torch.Tensor, str]:
        return {copy: self._names[parameter] for parameter, copy in self._copies.items()}
