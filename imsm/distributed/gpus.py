"""Visible GPUs, and those that other processes are using."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from imsm.utils.errors import UserError

# a display or an idle CUDA context uses less
_BUSY_FRACTION = 0.1
_QUERY = "index,uuid,name,memory.used,memory.total"


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One GPU as reported by nvidia-smi; memory in MiB."""

    index: str
    uuid: str
    name: str
    used: float
    total: float

    @property
    def busy(self) -> bool:
        """Whether more than a tenth of its memory is in use."""
        return self.used > _BUSY_FRACTION * self.total

    def __str__(self) -> str:
        return f"{self.index} ({self.name}: {self.used / 1024:.1f} of {self.total / 1024:.1f} GiB in use)"


def visible_gpus() -> int:
    """Return the number of GPUs that torch sees, without initializing CUDA."""
    import torch  # the launcher starts faster without it

    return torch.cuda.device_count()


def gpu_names() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them: numbers, or UUIDs of GPUs or MIG devices."""
    count = visible_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    # CUDA ignores what follows an invalid name, and torch does not count it
    return [name.strip() for name in visible.split(",") if name.strip()][:count]


def free_gpu_names() -> list[str]:
    """Return those of `gpu_names` that no other process uses, and print which are left out; a single one may be used.

    Raises:
        UserError: all of several GPUs are in use.
    """
    names = gpu_names()
    gpus = _query_gpus() if len(names) > 1 else []
    # nvidia-smi does not list MIG devices
    busy = {name: gpu for name, gpu in zip(names, gpus, strict=True) if gpu.busy} if len(gpus) == len(names) else {}
    if not busy:
        return names
    described = ", ".join(map(str, busy.values()))
    if len(busy) == len(names):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: every GPU is in use by another process, {described}; wait until one is free"
        )
    print(f"GPUs in use by another process are left out: {described}", file=sys.stderr)
    return [name for name in names if name not in busy]


def smallest_gpu_memory() -> int | None:
    """Return the bytes of the smallest visible GPU without initializing CUDA; None if nvidia-smi does not know it."""
    totals = [gpu.total for gpu in _query_gpus()]
    return int(min(totals) * 2**20) if totals else None


def check_gpus_free(*, num_processes: int, engine: str) -> None:
    """Check that the first ``num_processes`` visible GPUs are free; skipped without nvidia-smi.

    Raises:
        UserError: One of them is in use; names free ones. ``engine`` is the config's name.
    """
    gpus = _query_gpus()
    busy = [gpu for gpu in gpus[:num_processes] if gpu.busy]
    if not busy:
        return
    free = [gpu.index for gpu in gpus if not gpu.busy][:num_processes]
    fix = "wait until they are free"
    if free:
        fewer = f" engine.nproc_per_node={len(free)}" if len(free) < num_processes else ""
        fix += f", or use CUDA_VISIBLE_DEVICES={','.join(free)}{fewer}"
    plural = "s" if len(busy) > 1 else ""
    raise UserError(f"engine={engine}: GPU{plural} {', '.join(map(str, busy))}: in use by another process; {fix}")


def _query_gpus() -> list[GpuInfo]:
    """Return the visible GPUs in torch's order, or [] if they cannot be queried."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        gpus = [_parse_gpu(line) for line in output.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    # nvidia-smi ignores the variable, whose order is torch's numbering
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    return [
        gpu
        for name in (part.strip() for part in visible.split(",") if part.strip())
        for gpu in gpus
        if gpu.index == name or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]


def _parse_gpu(line: str) -> GpuInfo:
    index, uuid, name, used, total = (part.strip() for part in line.split(","))
    return GpuInfo(index=index, uuid=uuid, name=name, used=float(used), total=float(total))
