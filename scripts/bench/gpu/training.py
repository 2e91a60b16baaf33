"""Rows about training steps: IMSM with and without hidden-state cache against PEFT on the same weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, compute_in_memory
from imsm.training.hidden_state_store import get_or_compute, make_cache_key, open_cache
from imsm.training.train_step import train_step
from scripts.bench.gpu.session import Measured, Method, Session, Task, total_tokens
from scripts.bench.steps import engine_of, sft_step, trainer_step
from scripts.bench.sweep import cache_in
from scripts.bench.workloads import random_batch

VARIANTS: tuple[tuple[str, Method, bool], ...] = (
    ("peft", "peft", False),
    ("imsm, cache", "imsm", True),
    ("imsm", "imsm", False),
)
"""Name, method, and whether the step reads a hidden-state cache."""


def steps(
    session: Session,
    *,
    task: Task,
    examples: int,
    micro_batching: MicroBatching,
    checkpointing: bool = False,
    variants: Sequence[str] = ("peft", "imsm, cache", "imsm"),
) -> Measured:
    """Time an optimizer step of each variant on the same examples; also its peak memory and tokens per second."""
    items = session.examples(task, examples)
    parts = micro_batching.split(items, rank=0, world_size=1)
    tokens = total_tokens(items)
    found: Measured = {"examples": examples, "tokens": tokens, "micro_batches": len(parts)}
    if not micro_batching.packed:
        padded = sum(len(part) * max(total_tokens([each]) for each in part) for part in parts)
        found["padding_share"] = 1 - tokens / padded
    cache = compute_in_memory(session.model, items, pad_id=0) if "imsm, cache" in variants else None
    for name, method, cached in VARIANTS:
        if name not in variants:
            continue
        run = step_of(session, items, micro_batching=micro_batching, cache=cache if cached else None)
        with session.method(method), checkpointed(session, checkpointing):
            found[name] = session.timed(run) | {"peak_gb": session.peak_gb(run)}
        found[name]["tokens_per_s"] = 1e3 * tokens / found[name]["ms"]
    if "peft" in found:
        for name, _, _ in VARIANTS:
            if name in found:
                found[name]["to_peft"] = found[name]["ms"] / found["peft"]["ms"]
    return found


def step_of(
    session: Session,
    items: Sequence[TokenizedExample],
    *,
    micro_batching: MicroBatching,
    cache: HiddenStateCache | None = None,
) -> Callable[[], object]:
    """Return a function that takes an optimizer step on ``items`` with the selected method."""
    engine = engine_of(session.model, session.setup)
    options: dict[str, Any] = {"callbacks": None, "micro_batching": micro_batching, "pad_id": 0}

    def run() -> object:
        session.model.train()
        return train_step([items], step=9, engine=engine, hidden_state_cache=cache, **options)

    return run


@contextmanager
def checkpointed(session: Session, enabled: bool) -> Iterator[None]:
    """Recompute activations in the ``with`` block if ``enabled``."""
    if enabled:
        session.model.activation_checkpointing_enable()
    try:
        yield
    finally:
        if enabled:
            session.model.activation_checkpointing_disable()


def bfloat16_adapter(session: Session) -> Measured:
    """Time steps with LoRA's values in bfloat16, the most that an adapter in that precision can gain."""
    learned = [p for name, p in session.model.named_parameters() if "lora_" in name]
    values = [p.data for p in learned]
    for parameter in learned:
        parameter.data = parameter.data.bfloat16()
    try:
        return steps(
            session, task="gsm8k", examples=16, micro_batching=MicroBatching(size=4), variants=("peft", "imsm")
        )
    finally:
        for parameter, value in zip(learned, values, strict=True):
            parameter.data, parameter.grad = value, None


def other_trainer(session: Session, *, name: str, task: Task) -> Measured:
    """Time our PEFT against the step of TRL's or transformers' trainer, which has its own copy of the weights.

    Raises:
        ImportError: the library, or one that it needs, is missing.
    """
    setup = session.mean_shape(task)
    with tempfile.TemporaryDirectory() as folder:
        step = {"trl": sft_step, "trainer": trainer_step}[name](setup, folder)
        theirs = session.timed(step) | {"peak_gb_with_our_weights": session.peak_gb(step)}
    del step
    items = random_batch(setup, vocabulary=session.vocab_size)
    with session.method("peft"):
        ours = session.timed(step_of(session, items, micro_batching=MicroBatching(size=len(items))))
    return {"ours": ours, "theirs": theirs, "ratio": ours["ms"] / theirs["ms"]}


def cache_on_disk(session: Session) -> Measured:
    """Time computing, verifying and reading a hidden-state cache on this machine's disk."""
    items = session.examples("gsm8k", 32 if session.tiny else 512)
    with tempfile.TemporaryDirectory() as folder, cache_in(folder):
        key = make_cache_key(
            items, backbone="bench", dtype=session.setup.dtype, attention="sdpa", pooling="mean", device=session.device
        )
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            path = get_or_compute(key, session.model, items, pad_id=0, label="bench")
            seconds.append(time.perf_counter() - started)
        cache = open_cache(path, items)
        batch = cache.model_inputs(items[:16])
        megabytes = sum(file.stat().st_size for file in path.rglob("*")) / 1e6
        return {
            "mb": megabytes,
            "compute_s": seconds[0],
            "tokens_per_s": total_tokens(items) / seconds[0],
            "verify_s": seconds[1],
            "read_ms": session.timed(lambda: cache.model_inputs(items[16:32]))["ms"],
            "to_device_ms": session.timed(lambda: [value.to(session.device) for value in batch.values()])["ms"],
            "batch_mb": sum(value.nbytes for value in batch.values()) / 1e6,
        }


def compiled_layers(session: Session) -> Measured:
    """Time a PEFT step before and after each decoder layer is compiled."""
    layers: Any = session.model.streams.decoder.layers
    options: dict[str, Any] = {"task": "gsm8k", "examples": 4, "micro_batching": MicroBatching(size=4)}
    eager = steps(session, variants=("peft",), **options)["peft"]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        started = time.perf_counter()
        compiled = steps(session, variants=("peft",), **options)["peft"]
        seconds = time.perf_counter() - started
    finally:
        for layer in layers:
            # torch has no public way back
            layer._compiled_call_impl = None
    return {"eager": eager, "compiled": compiled, "seconds": seconds, "ratio": compiled["ms"] / eager["ms"]}


def deterministic_step(session: Session) -> Measured:
    """Time PEFT's and IMSM's step with deterministic algorithms."""
    from imsm.training.determinism import deterministic_algorithms

    with deterministic_algorithms(True):
        return steps(
            session, task="gsm8k", examples=16, micro_batching=MicroBatching(size=4), variants=("peft", "imsm")
        )
