"""torch's process group, used for collectives on tensors."""

import atexit
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed

from imsm.distributed.context import DistributedContext


def init_process_group(dist_context: DistributedContext, *, device: torch.device, timeout_minutes: float) -> None:
    """Initialize torch's process group (NCCL on GPUs, gloo on CPUs) unless there is one.

    The jobs of a sweep share one group, because DeepSpeed keeps a reference to the first one.
    Loading and tokenization belong before the first collective: a process that waits longer than
    ``timeout_minutes`` for another one fails. ``dist_context`` needs a store even for one process.
    """
    if distributed.is_initialized():
        return
    assert dist_context.store is not None
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        # a prefix, because torch's keys share the store with our messages
        store=distributed.PrefixStore("imsm-collectives", dist_context.store),
        rank=dist_context.rank,
        world_size=dist_context.world_size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    # NCCL warns about a process group that is not destroyed
    atexit.register(distributed.destroy_process_group)


def sum_over_processes(values: Sequence[float], *, device: torch.device) -> list[float]:
    """Return each value summed over all processes of the group."""
    # float64, so that counts and losses are not rounded to float32
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return [float(value) for value in summed.tolist()]
