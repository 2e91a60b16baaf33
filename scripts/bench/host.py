"""Time of the host, which a GPU waits for: a Llama of 32 tiny layers, whose products take no time.

Process time of one thread; the median of ratios over many alternating rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from imsm.data.batching import MicroBatching
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.train_step import train_step
from scripts.bench.comparison import Comparison
from scripts.bench.steps import engine_of
from scripts.bench.syncs import micro_batch_reads
from scripts.bench.workloads import Setup, build, random_batch

SHAPE = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MODULES = {
    "query and value": ["q_proj", "v_proj"],
    "all linear layers": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
DECODING_BARS = {"query and value": 0.92, "all linear layers": 0.88}
ROUNDS, TOKENS = 12, 25


def compare_host(setup: Setup, *, rounds: int = ROUNDS) -> list[Comparison]:
    """Decoding one token, a training micro-batch, and the host's reads per micro-batch."""
    with _one_thread():
        rows = [_decoding(setup, name, rounds=rounds) for name in MODULES]
        return [*rows, *_training(setup, rounds=rounds)]


def tiny_setup(setup: Setup, modules: list[str]) -> Setup:
    """Return the setup with `SHAPE` and an adapter on ``modules``, in float32 on the CPU."""
    shape = {"shape": SHAPE, "target_modules": modules, "gate_rank": 4, "lora_rank": 4, "dtype": "float32"}
    return replace(setup, **shape, device="cpu", batch=16, prompt_tokens=8, answer_tokens=4)  # type: ignore[arg-type]


def _decoding(setup: Setup, name: str, *, rounds: int) -> Comparison:
    """Tokens per second of a session of one row, after its first steps."""
    model = build(tiny_setup(setup, MODULES[name]), stream="interwoven").eval()

    def decode(stream: str) -> float:
        model.stream = stream  # type: ignore[assignment]
        session = DecodingSession(model, [[5, 6, 7, 8]], pad_id=0, max_new_tokens=TOKENS + 3)
        for step in range(TOKENS + 3):
            if step == 3:
                started = time.process_time()
            session.forward(session.logits.argmax(dim=-1)[:, None])
        return (time.process_time() - started) / TOKENS

    timers = {stream: partial(decode, stream) for stream in ("interwoven", "tuned")}
    seconds = _compared(timers, base="tuned", rounds=rounds)
    return Comparison(
        name=f"host time, decoding, batch 1, {name}: IMSM / our PEFT",
        ours=1 / seconds["interwoven"],
        theirs=1 / seconds["tuned"],
        unit="tokens/s",
        bar=DECODING_BARS[name],
        at_least=True,
    )


def _training(setup: Setup, *, rounds: int) -> list[Comparison]:
    """Milliseconds of a micro-batch of four, a quarter of an optimizer step; and its reads."""
    setup = tiny_setup(setup, MODULES["query and value"])
    imsm, peft = build(setup, stream="interwoven"), build(setup, stream="tuned")
    steps = {"cache": stepper(imsm, setup, cached=True), "imsm": stepper(imsm, setup), "peft": stepper(peft, setup)}
    for model in (imsm, peft):
        model.train()

    def timer(step: Callable[[int], object]) -> Callable[[], float]:
        def timed() -> float:
            started = time.process_time()
            step(4)
            return 1e3 * (time.process_time() - started) / 4

        return timed

    timers = {name: timer(step) for name, step in steps.items()}
    milliseconds = _compared(timers, base="peft", rounds=2 * rounds)
    rows = [
        Comparison(
            name=f"host time, training micro-batch, {name}: IMSM / our PEFT",
            ours=milliseconds[key],
            theirs=milliseconds["peft"],
            unit="ms",
            bar=bar,
        )
        for key, name, bar in (("cache", "hidden-state cache filled", 1.03), ("imsm", "no cache", 1.35))
    ]
    reads = Comparison(
        name="host reads of device values, training micro-batch, no cache: IMSM / the limit",
        ours=micro_batch_reads(imsm, steps["imsm"]),
        theirs=1,
        unit="reads",
        bar=1.0,
    )
    return [*rows, reads]


def stepper(model: SiameseForCausalLM, setup: Setup, *, cached: bool = False) -> Callable[[int], object]:
    """Return a function that takes an optimizer step of the given number of micro-batches of four."""
    items = random_batch(setup, vocabulary=model.config.vocab_size)
    cache = compute_in_memory(model, items, pad_id=0) if cached else None
    options: dict[str, Any] = {
        "engine": engine_of(model, setup),
        "callbacks": None,
        "micro_batching": MicroBatching(size=4),
    }

    def step(micro_batches: int) -> object:
        batch = [items[: 4 * micro_batches]]
        return train_step(batch, step=9, pad_id=0, hidden_state_cache=cache, **options)

    return step


def _compared(timers: Mapping[str, Callable[[], float]], *, base: str, rounds: int) -> dict[str, float]:
    """Return the median of ``base``, and of each other timer that median times the median ratio to ``base``.

    Ratios are of neighbours in time, in alternating order, so that load on the machine affects both.
    """
    found: dict[str, list[float]] = {name: [] for name in timers}
    for round_ in range(rounds + 1):
        for name in list(timers) if round_ % 2 else reversed(timers):
            value = timers[name]()
            if round_:
                found[name].append(value)
    typical = median(found[base])
    return {
        name: typical * median(one / other for one, other in zip(values, found[base], strict=True))
        for name, values in found.items()
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
