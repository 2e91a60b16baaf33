"""Comparable time and memory: alternating in one process, medians, first round discarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

Measured = Callable[[], list[float]]
"""Runs once and returns the seconds that it measured."""


def interleaved(timers: Mapping[str, Measured], *, rounds: int) -> dict[str, list[float]]:
    """Measure alternately, so that load on the machine affects all; discard a first round.

    Args:
        timers: functions that measure.
        rounds: number of rounds that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for round_ in range(rounds + 1):
        for name, measured in timers.items():
            found = measured()
            if round_:
                seconds[name] += found
    return seconds


def medians(timers: Mapping[str, Measured], *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each."""
    return {name: median(each) for name, each in interleaved(timers, rounds=rounds).items()}


def now(device: str) -> float:
    """Return the time in seconds once the device is idle."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object], *, device: str) -> Measured:
    """Return a function that runs ``run`` and returns its seconds."""

    def measured() -> list[float]:
        start = now(device)
        run()
        return [now(device) - start]

    return measured


class Clock(StoppingCriteria):
    """Never stops; records the time of each new token."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """Return False for each row, (B,)."""
        self.times.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(
    generate: Callable[..., torch.Tensor],
    prompts: torch.Tensor,
    *,
    tokens: int,
    device: str,
    mask: torch.Tensor | None = None,
) -> list[float]:
    """Return the seconds of each new token; the first includes the prefill.

    Args:
        generate: method of a model.
        prompts: token ids, (B, T).
        tokens: number of new tokens; the end token does not stop generation.
        device: the model's device.
        mask: attention mask, (B, T); None without padding.
    """
    clock = Clock(device)
    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
    start = now(device)
    with torch.inference_mode():
        generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts) if mask is None else mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return [after - before for before, after in pairwise([start, *clock.times])]


def peak_of(run: Callable[[], object], *, device: str) -> int:
    """Return the peak bytes while ``run`` runs, including what was allocated before.

    On a CPU this is the process's anonymous memory (mapped files, such as libraries, are not
    counted); use a separate process. On a GPU it is the allocator's peak.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current use
    run()
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    """Return an entry of this process's status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(f"/proc/self/status has no {key}")
