"""Time and memory that can be compared: by turns in one process, medians, a first round thrown."""

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


def interleaved(arms: Mapping[str, Measured], *, rounds: int) -> dict[str, list[float]]:
    """All arms by turns, so that a busy moment of the machine meets all; a first round is thrown.

    Args:
        arms: what is measured.
        rounds: how many are kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, measured in arms.items():
            found = measured()
            if round_:
                seconds[name] += found
    return seconds


def medians(arms: Mapping[str, Measured], *, rounds: int) -> dict[str, float]:
    """The median seconds of each arm."""
    return {name: median(each) for name, each in interleaved(arms, rounds=rounds).items()}


def now(device: str) -> float:
    """Seconds, when the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object], *, device: str) -> Measured:
    """``run`` with its seconds as result."""

    def measured() -> list[float]:
        start = now(device)
        run()
        return [now(device) - start]

    return measured


class Clock(StoppingCriteria):
    """Never stops; notes when each new token is there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """No row is done, (B,)."""
        self.times.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(generate: Callable[..., torch.Tensor], prompts: torch.Tensor, *, tokens: int, device: str) -> list[float]:
    """Seconds that each new token took; the first one's include reading the prompt.

    Args:
        generate: a model's.
        prompts: token ids, (B, T).
        tokens: how many new ones; the end of the text does not end it.
        device: where the model is.
    """
    clock = Clock(device)
    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
    start = now(device)
    with torch.inference_mode():
        generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return [after - before for before, after in pairwise([start, *clock.times])]


def peak_of(run: Callable[[], object], *, device: str) -> int:
    """Bytes at the peak while ``run`` runs, all that was there before included.

    On a CPU it is the process's anonymous memory (files that it maps, libraries above all, are
    not counted): meant for a process of its own. On a GPU it is the allocator's peak.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now
    run()
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    """An entry of this process's status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(f"/proc/self/status has no {key}")
