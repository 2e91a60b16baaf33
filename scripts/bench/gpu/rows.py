"""The rows, most worth first: what is measured, and for how many seconds at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from imsm.data.batching import MicroBatching
from scripts.bench.gpu.decoding import decoding, evaluation, paper_code
from scripts.bench.gpu.machine import build_model, first_step_bits, machine
from scripts.bench.gpu.profiling import profiled_decoding, profiled_step, syncs
from scripts.bench.gpu.session import Measured, Session
from scripts.bench.gpu.training import cache_on_disk, other_trainer, steps


@dataclass(frozen=True)
class Row:
    """A measurement with its name in the record; it is interrupted after ``seconds``."""

    name: str
    seconds: int
    measure: Callable[[Session], Measured]


MACHINE = Row("machine", 30, machine)
BUILD = Row("build", 120, build_model)
"""Without it no later row can run, so it is not skipped when it was measured before."""
_BY_4, _BY_16 = MicroBatching(size=4), MicroBatching(size=16)
_BUDGET = 4 * (108 + 96)
"""Tokens of an average micro-batch of four GSM8K examples."""
_gsm8k = partial(steps, task="gsm8k", examples=16)
_short = partial(_gsm8k, variants=("peft", "imsm"))
ROWS = (
    Row("first step bits", 20, first_step_bits),
    Row("steps mrpc 16", 40, partial(steps, task="mrpc", examples=16, micro_batching=_BY_16)),
    Row("decoding 1", 60, partial(decoding, rows=1)),
    Row("steps gsm8k 16 by 4", 60, partial(_gsm8k, micro_batching=_BY_4)),
    Row("syncs", 30, syncs),
    Row("profile step peft", 40, partial(profiled_step, method="peft")),
    Row("profile step imsm", 40, partial(profiled_step, method="imsm")),
    Row("profile decoding imsm", 40, partial(profiled_decoding, method="imsm")),
    Row("profile decoding peft", 40, partial(profiled_decoding, method="peft")),
    Row("evaluation 1", 40, partial(evaluation, rows=1, methods=("imsm", "peft"))),
    Row("evaluation 1, static", 40, partial(evaluation, rows=1, methods=("imsm", "peft"), static_cache=True)),
    Row("steps gsm8k 16 by 16", 60, partial(_gsm8k, micro_batching=_BY_16)),
    Row("steps gsm8k 2, one of 8 processes", 30, partial(steps, task="gsm8k", examples=2, micro_batching=_BY_4)),
    Row("steps gsm8k 16, checkpointing", 60, partial(_short, micro_batching=_BY_16, checkpointing=True)),
    Row("steps gsm8k 16 by 4, unsorted", 40, partial(_short, micro_batching=MicroBatching(size=4, sort=False))),
    Row("steps gsm8k 16, token budget", 40, partial(_short, micro_batching=MicroBatching(size=16, tokens=_BUDGET))),
    Row(
        "steps gsm8k 16, packed",
        60,
        partial(
            _gsm8k, micro_batching=MicroBatching(size=16, tokens=_BUDGET, packed=True), acceleration={"packing": True}
        ),
    ),
    Row("decoding 32", 60, partial(decoding, rows=32)),
    Row("evaluation 16", 40, partial(evaluation, rows=16)),
    Row("evaluation 128", 40, partial(evaluation, rows=128)),
    Row("evaluation 16, static", 40, partial(evaluation, rows=16, static_cache=True)),
    Row("evaluation 128, static", 40, partial(evaluation, rows=128, static_cache=True)),
    Row("trl gsm8k", 60, partial(other_trainer, name="trl", task="gsm8k")),
    Row("trainer mrpc", 40, partial(other_trainer, name="trainer", task="mrpc")),
    Row(
        "steps gsm8k 16 by 4, adapter in bfloat16",
        40,
        partial(_short, micro_batching=_BY_4, acceleration={"adapter_precision": "backbone"}),
    ),
    Row("steps gsm8k 16 by 4, Liger", 60, partial(_short, micro_batching=_BY_4, acceleration={"liger_kernel": True})),
    Row("hidden-state cache on disk", 60, cache_on_disk),
    Row("trl mrpc", 60, partial(other_trainer, name="trl", task="mrpc")),
    Row("decoding 128", 60, partial(decoding, rows=128)),
    Row("paper code", 60, paper_code),
    Row("profile step imsm, cache", 40, partial(profiled_step, method="imsm", cached=True)),
    Row("steps gsm8k 16 by 4, deterministic", 40, partial(_short, micro_batching=_BY_4, deterministic=True)),
    Row(
        "steps gsm8k 16 by 4, compiled layers",
        120,
        partial(_short, micro_batching=_BY_4, acceleration={"compile_layers": True}),
    ),
)
