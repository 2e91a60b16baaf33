"""Which GPUs there are, and which of them others are at work on."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from imsm.utils.errors import UserError

_BUSY = 0.1
"""Share of a GPU's memory in use from which it counts as busy."""
_QUERY = "index,uuid,name,memory.used,memory.total"


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One GPU, as nvidia-smi knows it; memory in MiB."""

    index: str
    uuid: str
    name: str
    used: float
    total: float

    @property
    def busy(self) -> bool:
        """Whether something else is at work on it."""
        return self.used > _BUSY * self.total

    def __str__(self) -> str:
        return f"{self.index} ({self.name}: {self.used / 1024:.1f} of {self.total / 1024:.1f} GiB in use)"


def visible_gpus() -> int:
    """How many GPUs torch sees; nothing is set up on them."""
    import torch

    return torch.cuda.device_count()


def check_gpus_free(*, processes: int, engine: str) -> None:
    """See that the GPUs of a run's processes are free; without nvidia-smi nothing is looked at.

    Args:
        processes: the first visible GPUs, one each.
        engine: its name, for the message.

    Raises:
        UserError: something is at work on one of them.
    """
    gpus = _seen()
    busy = [gpu for gpu in gpus[:processes] if gpu.busy]
    if not busy:
        return
    free = [gpu.index for gpu in gpus if not gpu.busy][:processes]
    fix = "wait until they are free"
    if free:
        less = f" engine.nproc_per_node={len(free)}" if len(free) < processes else ""
        fix += f", or use CUDA_VISIBLE_DEVICES={','.join(free)}{less}"
    names = ", ".join(map(str, busy))
    raise UserError(
        f"engine={engine}: GPU{'s' if len(busy) > 1 else ''} {names}: not free for a process of this run; {fix}"
    )


def _seen() -> list[GpuInfo]:
    """The visible GPUs in torch's order; none where that cannot be known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        gpus = [_gpu(line) for line in told.stdout.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [
        gpu
        for name in names
        for gpu in gpus
        if gpu.index == name or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]


def _gpu(line: str) -> GpuInfo:
    index, uuid, name, used, total = (part.strip() for part in line.split(","))
    return GpuInfo(index=index, uuid=uuid, name=name, used=float(used), total=float(total))
