"""The summary of a GPU's profile, from events as torch's profiler returns them."""

from __future__ import annotations

from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from scripts.bench.gpu.profiling import gpu_time


def event(key: str, device: DeviceType, *, time_us: int = 0, count: int = 1, **fields: Any) -> FunctionEventAvg:
    found = FunctionEventAvg()
    values = {"key": key, "device_type": device, "self_device_time_total": time_us, "count": count, **fields}
    for name, value in {"is_user_annotation": False, **values}.items():
        setattr(found, name, value)
    return found


def test_kernels_are_summed_without_annotations_and_operations_of_the_host() -> None:
    events = [
        event("aten::mm", DeviceType.CPU, time_us=900),
        event("gemm", DeviceType.CUDA, time_us=600, count=3),
        event("Memcpy HtoD", DeviceType.CUDA, time_us=1400, count=2),
        event("a step", DeviceType.CUDA, time_us=5000, is_user_annotation=True),
        event("cudaStreamSynchronize", DeviceType.CPU, count=4),
    ]
    found = gpu_time(events, wall_ms=8.0)
    assert (found["gpu_ms"], found["gpu_busy_share"], found["kernels"]) == (2.0, 0.25, 5)
    assert found["host_waits"] == {"cudaStreamSynchronize": 4}
    assert [name for name, _, _ in found["longest"]] == ["Memcpy HtoD", "gemm"]
