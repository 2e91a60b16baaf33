"""How cost grows with prompt, batch, answer, gate rank, processes and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scripts.bench.hardware import bandwidth, matrix_rate, operations
from scripts.bench.steps import train_step
from scripts.bench.sweep import STEPS, sweep_seconds
from scripts.bench.timing import decode, interleaved, medians, timed
from scripts.bench.workloads import Setup, build, random_batch

VARIANTS = ("IMSM, hidden-state cache filled", "IMSM, no cache", "our PEFT")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds over a growing quantity; ``floor`` is the machine's lower bound for PEFT."""

    name: str
    over: str
    at: list[float]
    variants: dict[str, list[float]]
    floor: list[float] | None
    floor_of: str | None = None

    def record(self) -> dict[str, Any]:
        """As the JSON file keeps it."""
        return asdict(self)


def step_curves(setup: Setup, *, rounds: int) -> list[Curve]:
    """A training step over prompt length, batch, answer length and gate rank."""
    small = replace(setup, batch=min(4, setup.batch))
    asked: dict[str, tuple[Setup, str, list[int]]] = {
        "tokens of a prompt": (small, "prompt_tokens", [32, 80, 160, 320]),
        "examples of a batch": (setup, "batch", [1, 4, 8, 16]),
        "tokens of an answer": (small, "answer_tokens", [2, 16, 64, 256]),
        "rank of the gate": (small, "gate_rank", [1, 8, 64, 256]),
    }
    rate = matrix_rate(dtype=setup.dtype, device=setup.device)
    return [
        _steps(base, field, values, over=over, rate=rate, rounds=rounds)
        for over, (base, field, values) in asked.items()
    ]


def _steps(base: Setup, field: str, values: Sequence[int], *, over: str, rate: float, rounds: int) -> Curve:
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    floor = []
    for value in values:
        setup = replace(base, **{field: value})  # type: ignore[arg-type]
        imsm, peft = build(setup, stream="interwoven"), build(setup, stream="tuned")
        steps = {
            "IMSM, hidden-state cache filled": train_step(imsm, setup, cached=True),
            "IMSM, no cache": train_step(imsm, setup),
            "our PEFT": train_step(peft, setup),
        }
        timers = {name: timed(step, device=setup.device) for name, step in steps.items()}
        for name, seconds in medians(timers, rounds=rounds).items():
            found[name].append(seconds)
        floor.append(operations(steps["our PEFT"]) / rate)
    return Curve(
        name="a training step",
        over=over,
        at=[float(value) for value in values],
        variants=found,
        floor=floor,
        floor_of=_operations_at(rate),
    )


def decoding_curve(setup: Setup, *, rounds: int) -> Curve:
    """A response of growing length, one row, bfloat16."""
    setup = replace(setup, dtype="bfloat16", batch=1)
    imsm, peft = (build(setup, stream=stream).eval() for stream in ("interwoven", "tuned"))
    rows = random_batch(setup, vocabulary=imsm.config.vocab_size)
    prompts = torch.tensor([rows[0].prompt_ids], device=setup.device)
    lengths = [8, 32, 128]
    timers = {
        "IMSM": partial(decode, imsm.generate, prompts, tokens=max(lengths), device=setup.device),
        "our PEFT": partial(decode, peft.generate, prompts, tokens=max(lengths), device=setup.device),
    }
    found = interleaved(timers, rounds=rounds)
    weights = sum(p.numel() * p.element_size() for p in peft.backbone.parameters())
    rate = bandwidth(device=setup.device)
    times = {name: _until(seconds, lengths, of=max(lengths)) for name, seconds in found.items()}
    return Curve(
        name="an answer, batch 1, bfloat16",
        over="tokens of an answer",
        at=[float(length) for length in lengths],
        variants=times,
        floor=[length * weights / rate for length in lengths],
        floor_of=f"the weights' bytes at {rate / 1e9:,.0f} GB/s",
    )


def _until(seconds: list[float], lengths: Sequence[int], *, of: int) -> list[float]:
    """Return the median seconds until each length is reached."""
    rounds = [seconds[start : start + of] for start in range(0, len(seconds), of)]
    return [median(sum(each[:length]) for each in rounds) for length in lengths]


def runs_curve(setup: Setup) -> Curve:
    """Training time of a sweep, run after run; the first run computes the cache."""
    ours, theirs = sweep_seconds(setup)
    rate = matrix_rate(dtype=setup.dtype, device=setup.device)
    least = STEPS * operations(train_step(build(setup, stream="tuned"), setup)) / rate
    return Curve(
        name="training all runs of a sweep, 60 steps each",
        over="runs",
        at=[float(number) for number in range(1, len(ours) + 1)],
        variants={"IMSM, computing the cache included": ours, "our PEFT": theirs},
        floor=[number * least for number in range(1, len(ours) + 1)],
        floor_of=_operations_at(rate),
    )


def processes_curve(setup: Setup) -> Curve:
    """One epoch of the miniature over processes that split a batch (ZeRO-2 for two).

    Args:
        setup: the miniature; operations per token are those of its batch.

    Raises:
        ImportError: DeepSpeed is missing.
    """
    import deepspeed  # noqa: F401

    found: dict[str, list[float]] = {"IMSM": [], "our PEFT": []}
    tokens = 0
    for processes in (1, 2):
        for name, method in {"IMSM": "imsm", "our PEFT": "peft"}.items():
            record = _trained(method, processes)
            found[name].append(float(record["seconds"]))
            tokens = int(record["tokens"])
    rate = matrix_rate(dtype=setup.dtype, device=setup.device)
    batch = setup.batch * (setup.prompt_tokens + setup.answer_tokens)
    step = operations(train_step(build(setup, stream="tuned"), setup))
    return Curve(
        name="40 steps of the miniature",
        over="processes",
        at=[1.0, 2.0],
        variants=found,
        floor=[tokens * step / batch / rate] * 2,
        floor_of=_operations_at(rate),
    )


def _operations_at(rate: float) -> str:
    return f"PEFT's operations at {rate / 1e9:,.0f} GFLOP/s"


def _trained(method: str, processes: int) -> dict[str, Any]:
    """Train a run and return its training record."""
    engine = "single" if processes == 1 else "zero2"
    with tempfile.TemporaryDirectory() as folder:
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        environment = {**os.environ, "IMSM_RUNS": f"{folder}/runs", "IMSM_CACHE": folder, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "imsm.run", f"method={method}", f"engine={engine}"]
        command += ["engine.device=cpu", "data.max_train_examples=640", "trainer.num_epochs=1"]
        command += ["evaluation.tasks=[gsm8k]", "evaluation.limit=1"]
        command += [f"engine.nproc_per_node={processes}"] if processes > 1 else []
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (record,) = Path(folder, "runs").glob("*/training.json")
        return dict(json.loads(record.read_text()))
