"""Rows about what the GPU waits for: the share of time that it is busy, and the host's reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from imsm.data.batching import MicroBatching, collate_prompts
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from scripts.bench.gpu.session import Measured, Method, Session
from scripts.bench.gpu.training import VARIANTS, step_of
from scripts.bench.syncs import device_reads
from scripts.bench.timing import decode

_WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaMemcpyAsync",
    "aten::_local_scalar_dense",
    "aten::nonzero",
)


def profiled_step(session: Session, *, method: Method, cached: bool = False) -> Measured:
    """Profile a step of one micro-batch of four GSM8K examples."""
    items = session.examples("gsm8k", 4)
    cache = compute_in_memory(session.model, items, pad_id=0) if cached else None
    run = step_of(session, items, method=method, micro_batching=MicroBatching(size=4), cache=cache)
    return _profiled(session, run)


def profiled_decoding(session: Session, *, method: Method) -> Measured:
    """Profile nine tokens of one prompt."""
    ids, _ = collate_prompts([session.examples("mrpc", 1)[0].prompt_ids], pad_id=0, device=session.device)
    model: Any = session.model.eval()
    generate = model.adapted.generate if method == "peft" else model.generate
    return _profiled(session, lambda: decode(generate, ids, tokens=9, device=session.setup.device))


def syncs(session: Session) -> Measured:
    """Count the host's reads of device values: in a step of one micro-batch, and what a further one adds."""
    found: Measured = {}
    items = session.examples("gsm8k", 8)
    cache = compute_in_memory(session.model, items, pad_id=0)
    for name, method, cached in VARIANTS:
        counts = []
        for part in (items[:4], items):
            run = step_of(
                session, part, method=method, micro_batching=MicroBatching(size=4), cache=cache if cached else None
            )
            run()
            counts.append(device_reads(session.model, run).total())
        found[name] = {"step": counts[0], "micro_batch": counts[1] - counts[0]}
    return found


def _profiled(session: Session, run: Callable[[], object]) -> Measured:
    """Return wall time, the GPU's busy time and its longest kernels; on a CPU the number of events."""
    run()
    found: Measured = session.timed(run, rounds=3, warm_up=0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.is_gpu else [])]
    with profile(activities=activities) as profiler:
        session.timed(run, rounds=1, warm_up=0)
    events = profiler.key_averages()
    return found | (gpu_time(events, wall_ms=found["ms_min"]) if session.is_gpu else {"events": len(events)})


def gpu_time(events: Iterable[Any], *, wall_ms: float) -> Measured:
    """Return the GPU's busy time, its longest kernels, and what the host waited for, of a profile's averages."""
    events = list(events)
    # annotations span kernels that are counted themselves
    kernels = [
        event
        for event in events
        if event.device_type != DeviceType.CPU and event.self_device_time_total > 0 and not event.is_user_annotation
    ]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels) / 1e3
    return {
        "gpu_ms": busy,
        "gpu_busy_share": busy / wall_ms,
        "kernels": sum(event.count for event in kernels),
        "host_waits": {event.key: event.count for event in events if event.key in _WAITS},
        "longest": [
            [event.key[:90], event.count, round(event.self_device_time_total / 1e3, 3)] for event in kernels[:14]
        ],
    }
