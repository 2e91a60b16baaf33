"""Bars of a GPU, set before any was measured, and the comparisons of the rows that were.

They follow from operations counted for an H100 and from host times measured on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.bench.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar for the ratio of two values of the record, each given as "row/key/key"; ``theirs`` may be a number."""

    name: str
    ours: str
    theirs: str | float
    unit: str
    limit: float | None
    at_least: bool = False


def _steps(row: str, name: str, cached: float | None, uncached: float) -> list[Bar]:
    limits = {"imsm, cache": ("hidden-state cache filled", cached), "imsm": ("no cache", uncached)}
    return [
        Bar(
            name=f"training step, {name}, {label}: IMSM / our PEFT",
            ours=f"{row}/{key}/ms",
            theirs=f"{row}/peft/ms",
            unit="ms",
            limit=limit,
        )
        for key, (label, limit) in limits.items()
        if limit is not None
    ]


def _decoding(rows: int, limit: float) -> Bar:
    return Bar(
        name=f"decoding, batch {rows}: IMSM / PEFT's own generate",
        ours=f"decoding {rows}/imsm/tokens_per_s",
        theirs=f"decoding {rows}/peft/tokens_per_s",
        unit="tokens/s",
        limit=limit,
        at_least=True,
    )


BARS = (
    *_steps("steps mrpc 16", "MRPC, batch 16", 1.05, 1.55),
    *_steps("steps gsm8k 16 by 4", "GSM8K, 16 as 4 x 4", 1.05, 1.55),
    *_steps("steps gsm8k 16 by 16", "GSM8K, batch 16", 1.05, 1.55),
    *_steps("steps gsm8k 16, checkpointing", "GSM8K, batch 16, checkpointing", None, 1.40),
    Bar(
        name="peak training memory, GSM8K, batch 16: IMSM without cache / our PEFT",
        ours="steps gsm8k 16 by 16/imsm/peak_gb",
        theirs="steps gsm8k 16 by 16/peft/peak_gb",
        unit="GB",
        limit=1.05,
    ),
    Bar(
        name="host reads of device values, training micro-batch, no cache: IMSM / the limit",
        ours="syncs/imsm/micro_batch",
        theirs=1.0,
        unit="reads",
        limit=1.0,
    ),
    Bar(
        name="share of a training step in which the GPU is busy: IMSM / our PEFT",
        ours="profile step imsm/gpu_busy_share",
        theirs="profile step peft/gpu_busy_share",
        unit="",
        limit=None,
    ),
    _decoding(1, 0.97),
    _decoding(32, 0.90),
    _decoding(128, 0.90),
    Bar(
        name="decoding, batch 1: IMSM / two passes with caches",
        ours="decoding 1/imsm/tokens_per_s",
        theirs="decoding 1/two passes/tokens_per_s",
        unit="tokens/s",
        limit=1.7,
        at_least=True,
    ),
    Bar(
        name="decoding 128 after 128, batch 1: IMSM / the paper code's algorithm",
        ours="paper code/ours_tokens_per_s",
        theirs="paper code/theirs_tokens_per_s",
        unit="tokens/s",
        limit=1.5,
        at_least=True,
    ),
    Bar(
        name="evaluation, GSM8K's prompts, IMSM: batch 128 / batch 16",
        ours="evaluation 128/imsm/tokens_per_s",
        theirs="evaluation 16/imsm/tokens_per_s",
        unit="tokens/s",
        limit=5.0,
        at_least=True,
    ),
    *(
        Bar(
            name=f"evaluation, GSM8K's prompts, IMSM, batch {rows}: static cache / without",
            ours=f"evaluation {rows}, static/imsm/tokens_per_s",
            theirs=f"evaluation {rows}/imsm/tokens_per_s",
            unit="tokens/s",
            limit=limit,
            at_least=True,
        )
        for rows, limit in ((1, 2.0), (16, 1.5), (128, None))
    ),
    Bar(
        name="evaluation, GSM8K's prompts, batch 1, static cache: IMSM / our PEFT",
        ours="evaluation 1, static/imsm/tokens_per_s",
        theirs="evaluation 1, static/peft/tokens_per_s",
        unit="tokens/s",
        limit=0.9,
        at_least=True,
    ),
    *(
        Bar(
            name=f"training step, {task.upper()}'s mean lengths, batch 16: our PEFT / {library}",
            ours=f"{key} {task}/ours/ms",
            theirs=f"{key} {task}/theirs/ms",
            unit="ms",
            limit=1.0,
        )
        for key, task, library in (
            ("trl", "gsm8k", "TRL's SFTTrainer"),
            ("trl", "mrpc", "TRL's SFTTrainer"),
            ("trainer", "mrpc", "transformers' Trainer"),
        )
    ),
    *(
        Bar(
            name=f"training step, IMSM, GSM8K, 16 examples: {name} / {other}",
            ours=f"steps gsm8k 16{row}/imsm/ms",
            theirs=f"steps gsm8k 16 by 4{other_row}/imsm/ms",
            unit="ms",
            limit=limit,
        )
        for row, name, other_row, other, limit in (
            (", packed", "packed", ", unsorted", "4 x 4 in the order of the data", 0.85),
            (", token budget", "token budget", ", unsorted", "4 x 4 in the order of the data", 0.95),
            (" by 4", "4 x 4 sorted", ", unsorted", "4 x 4 in the order of the data", None),
            (" by 4, adapter in bfloat16", "adapter in bfloat16", "", "in float32", 0.95),
            (" by 4, Liger", "Liger's kernels", "", "without", 0.95),
            (" by 4, compiled layers", "compiled layers", "", "without", None),
            (" by 4, deterministic", "deterministic algorithms", "", "without", None),
        )
    ),
)


def comparisons(rows: Mapping[str, Any], *, is_gpu: bool) -> list[Comparison]:
    """Return a comparison for each bar whose values are in ``rows``; without a bar if they are not of a GPU."""
    found = []
    for bar in BARS:
        ours = _value(rows, bar.ours)
        theirs = _value(rows, bar.theirs) if isinstance(bar.theirs, str) else bar.theirs
        if ours is None or not theirs:
            continue
        limit = bar.limit if is_gpu else None
        found.append(
            Comparison(name=bar.name, ours=ours, theirs=theirs, unit=bar.unit, bar=limit, at_least=bar.at_least)
        )
    return found


def _value(rows: Mapping[str, Any], path: str) -> float | None:
    value: Any = rows
    for key in path.split("/"):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return None if value is None else float(value)
