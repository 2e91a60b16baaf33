"""Memory of this machine, or of the GPUs that a plan assumes."""

import os
from pathlib import Path

import torch

from imsm.distributed.gpus import smallest_gpu_memory, visible_gpus

ASSUMED_GPU_MEMORY = 80 * 10**9
"""Bytes of a GPU where none is visible: an A100 or H100 with 80 GB."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory(device: str) -> int:
    """Return the memory of a GPU ("cuda"), or the CPU memory that this process may use, in bytes."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_LIMITS):  # of a container
        try:
            limits.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def gpu_memory() -> int:
    """Return the memory of the smallest visible GPU, or of the GPU that a plan assumes, in bytes."""
    if visible_gpus() == 0:
        return ASSUMED_GPU_MEMORY
    # first without initializing CUDA, which takes memory of the GPU
    return smallest_gpu_memory() or machine_memory("cuda")
