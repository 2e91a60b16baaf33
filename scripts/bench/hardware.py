"""Measured limits of the machine: matrix multiplication rate and memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench.timing import interleaved, timed

_SIZE, _BYTES, _ROUNDS = 2048, 2**29, 5


def matrix_rate(*, dtype: str, device: str) -> float:
    """Return the floating-point operations per second of a product of square matrices."""
    sides = (torch.randn(_SIZE, _SIZE, dtype=getattr(torch, dtype), device=device) for _ in "ab")
    left, right = sides
    seconds = _least(lambda: left @ right, device)
    return 2 * _SIZE**3 / seconds


def bandwidth(*, device: str) -> float:
    """Return the bytes per second of reading a tensor that exceeds every cache."""
    values = torch.ones(_BYTES // 4, device=device)
    return _BYTES / _least(values.sum, device)


def operations(step: Callable[[], object]) -> int:
    """Return the floating-point operations of a step: matrix products and attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _least(run: Callable[[], object], device: str) -> float:
    return min(interleaved({"": timed(run, device=device)}, rounds=_ROUNDS)[""])
