"""Torch's process group: what tensors go through between the processes of a run."""

from __future__ import annotations

import atexit
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import distributed

if TYPE_CHECKING:
    import torch

    from imsm.distributed.context import DistributedContext


def start_collectives(dist_context: DistributedContext, *, device: torch.device, timeout_minutes: float) -> None:
    """Let tensors be summed over all processes of ``dist_context``, from now on until they end.

    Once is enough: the members of a sweep go on with the group that is there (DeepSpeed keeps hold
    of the first one it sees). Everything slow (loading, tokenising) belongs before the first
    collective, since a collective has a limit of time.

    Args:
        dist_context: with a store, be it of one process.
        device: of this process; NCCL on a GPU, gloo on a CPU.
        timeout_minutes: after it a process that waits for another one gives up.
    """
    if distributed.is_initialized():
        return
    assert dist_context.store is not None
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=distributed.PrefixStore("imsm-collectives", dist_context.store),
        rank=dist_context.rank,
        world_size=dist_context.size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    atexit.register(distributed.destroy_process_group)
