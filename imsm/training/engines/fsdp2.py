"""Multi-process engine for a backbone whose frozen layers are sharded by FSDP2.

Adapter and gate are complete in every process. Their gradients are summed over the processes after the last
micro-batch of a step; every process then clips and updates alike, so that their values stay equal.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import sum_over_processes
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.single_device import SingleDeviceEngine


class Fsdp2Engine(SingleDeviceEngine):
    """See `imsm.training.engines.base.Engine`; requires an initialized process group.

    The layers of ``model`` are sharded before (`imsm.models.backbones.sharded`); the model can be used afterwards.
    """

    def __init__(self, model: SiameseForCausalLM, *, dist_context: DistributedContext, **options: Any) -> None:
        super().__init__(model, **options)
        self.dist_context = dist_context

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients; after the last micro-batch, sum them over the processes."""
        super().backward(loss, last=last)
        if last:
            self._sum_gradients()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes."""
        return sum_over_processes(values, device=self.device)

    @torch.no_grad()
    def _sum_gradients(self) -> None:
        parameters = list(self._names)
        # no gradient in any process: the optimizer skips the parameter, as it does in one process
        counts = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        distributed.all_reduce(counts)
        used = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
        for dtype in sorted({p.dtype for p in used}, key=str):
            group = [p for p in used if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group])
            distributed.all_reduce(flat)
            for parameter, grad in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.grad = grad.view_as(parameter)
