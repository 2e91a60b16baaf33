"""Peak memory of a part of a process's life."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import torch


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
