"""Torch's process group, for as long as tensors go between the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import distributed

if TYPE_CHECKING:
    import torch

    from imsm.processes.world import World

_groups = 0


@contextmanager
def collectives(world: World, *, device: torch.device, timeout_minutes: float) -> Iterator[None]:
    """Inside, tensors can be summed over all processes of ``world``.

    Everything slow (loading, tokenising) belongs outside, since a collective has a limit of time.

    Args:
        world: with a store, be it of one process.
        device: of this process; NCCL on a GPU, gloo on a CPU.
        timeout_minutes: after it a process that waits for another one gives up.
    """
    global _groups
    assert world.store is not None
    _groups += 1  # a sweep's members meet anew, each under keys of its own
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=distributed.PrefixStore(f"imsm-collectives-{_groups}", world.store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
