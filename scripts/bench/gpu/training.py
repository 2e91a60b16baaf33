"""Rows about training steps: IMSM with and without hidden-state cache against PEFT on the same weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import HiddenStateCache, compute_in_memory
from imsm.training.acceleration import accelerated
from imsm.training.determinism import set_deterministic_environment
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
    variants: Sequence[str] = ("peft", "imsm, cache", "imsm"),
    checkpointing: bool = False,
    deterministic: bool = False,
    acceleration: Mapping[str, Any] = MappingProxyType({}),
) -> Measured:
    """Time an optimizer step of each variant on the same examples; also its peak memory and tokens per second.

    ``acceleration`` are arguments of `imsm.training.acceleration.accelerated`.

    Raises:
        ImportError: ``acceleration`` needs a package that is missing.
    """
    if acceleration.get("liger_kernel"):
        import liger_kernel  # noqa: F401
    if deterministic:
        set_deterministic_environment()
    items = session.examples(task, examples)
    tokens = total_tokens(items)
    found: Measured = {"examples": examples, "tokens": tokens, **_padding(items, micro_batching)}
    options = {"micro_batching": micro_batching, "deterministic": deterministic}
    with accelerated(session.model, **acceleration), _checkpointed(session, checkpointing):
        cache = compute_in_memory(session.model, items, pad_id=0) if "imsm, cache" in variants else None
        runs = {
            name: step_of(session, items, method=method, cache=cache if cached else None, **options)
            for name, method, cached in VARIANTS
            if name in variants
        }
        for name, values in session.compared(runs).items():
            found[name] = values | {"peak_gb": session.peak_gb(runs[name])}
            found[name]["tokens_per_s"] = 1e3 * tokens / values["ms"]
    for name in runs:
        found[name]["to_peft"] = found[name]["ms"] / found["peft"]["ms"]
    return found


def _padding(items: Sequence[TokenizedExample], micro_batching: MicroBatching) -> Measured:
    """Return the number of micro-batches and their share of padding."""
    parts = micro_batching.split(items, rank=0, world_size=1)
    padded = sum(len(part) * max(total_tokens([each]) for each in part) for part in parts)
    share = 0.0 if micro_batching.packed else 1 - total_tokens(items) / padded
    return {"micro_batches": len(parts), "padding_share": share}


def step_of(
    session: Session,
    items: Sequence[TokenizedExample],
    *,
    method: Method,
    micro_batching: MicroBatching,
    cache: HiddenStateCache | None = None,
    deterministic: bool = False,
) -> Callable[[], object]:
    """Return a function that takes an optimizer step on ``items`` with a method."""
    engine = engine_of(session.model, session.setup)
    options: dict[str, Any] = {"callbacks": None, "micro_batching": micro_batching, "pad_id": 0}

    def run() -> object:
        session.model.train()
        with session.method(method):
            return train_step(
                [items], step=9, engine=engine, hidden_state_cache=cache, deterministic=deterministic, **options
            )

    return run


@contextmanager
def _checkpointed(session: Session, enabled: bool) -> Iterator[None]:
    """Recompute activations in the ``with`` block if ``enabled``."""
    if enabled:
        session.model.activation_checkpointing_enable()
    try:
        yield
    finally:
        if enabled:
            session.model.activation_checkpointing_disable()


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
    ours = session.timed(step_of(session, items, method="peft", micro_batching=MicroBatching(size=len(items))))
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
