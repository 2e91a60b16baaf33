"""Time of the host, which a GPU waits for: a Llama of 32 tiny layers, whose products take no time.

Process time of one thread, the least of many alternating rounds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imsm.data.batching import MicroBatching
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training import train_step as training
from imsm.training.train_step import train_step
from scripts.bench.comparison import Comparison
from scripts.bench.steps import engine_of
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
_SYNCS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
"""Operations that wait for a GPU, because the host reads their result or its size."""


_ON_HOST = "on_host"
"""Attribute of tensors that are on the CPU in a training on a GPU, too."""


def compare_host(setup: Setup, *, rounds: int = ROUNDS) -> list[Comparison]:
    """Decoding one token, a training micro-batch, and the host's reads per micro-batch."""
    with _one_thread():
        rows = [_decoding(setup, name, rounds=rounds) for name in MODULES]
        return [*rows, *_training(setup, rounds=rounds)]


def host_syncs(run: Callable[[], object]) -> int:
    """Return how often ``run`` waits for the device: its operations in `_SYNCS`, and boolean indices."""
    collate = training.collate_training

    def marked(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        batch = collate(*args, **kwargs)
        for name in ("labels", "attention_mask"):
            setattr(batch[name], _ON_HOST, True)
        return batch

    with mock.patch.object(training, "collate_training", marked), _SyncCounter() as counter:
        run()
    return sum(counter.found.values())


def micro_batch_syncs(model: SiameseForCausalLM, step: Callable[[int], object]) -> int:
    """Return the host's reads that a further micro-batch adds; ``step`` takes the number of micro-batches."""
    model.train()
    return host_syncs(lambda: step(2)) - host_syncs(lambda: step(1))


class _SyncCounter(TorchDispatchMode):
    """Counts synchronizing operations by name.

    Not those on labels and masks, which stay on the CPU in a training on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if tensors and all(getattr(each, _ON_HOST, False) for each in tensors):
            output = func(*args, **(kwargs or {}))
            for each in tree_leaves(output):
                if isinstance(each, torch.Tensor):
                    setattr(each, _ON_HOST, True)
            return output
        if name in _SYNCS or (name in ("aten::index", "aten::index_put_", "aten::index_put") and _has_mask(args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _setup(setup: Setup, modules: list[str]) -> Setup:
    shape = {"shape": SHAPE, "target_modules": modules, "gate_rank": 4, "lora_rank": 4, "dtype": "float32"}
    return replace(setup, **shape, device="cpu", batch=16, prompt_tokens=8, answer_tokens=4)  # type: ignore[arg-type]


def _decoding(setup: Setup, name: str, *, rounds: int) -> Comparison:
    """Tokens per second of a session of one row, after its first steps."""
    model = build(_setup(setup, MODULES[name]), stream="interwoven").eval()

    def decode(stream: str) -> float:
        model.stream = stream  # type: ignore[assignment]
        session = DecodingSession(model, [[5, 6, 7, 8]], pad_id=0, max_new_tokens=TOKENS + 3)
        for step in range(TOKENS + 3):
            if step == 3:
                started = time.process_time()
            session.forward(session.logits.argmax(dim=-1)[:, None])
        return (time.process_time() - started) / TOKENS

    least = _least({stream: lambda stream=stream: decode(stream) for stream in ("interwoven", "tuned")}, rounds)
    return Comparison(
        name=f"host time, decoding, batch 1, {name}: IMSM / our PEFT",
        ours=1 / least["interwoven"],
        theirs=1 / least["tuned"],
        unit="tokens/s",
        bar=DECODING_BARS[name],
        at_least=True,
    )


def _training(setup: Setup, *, rounds: int) -> list[Comparison]:
    """Milliseconds of a micro-batch of four, a quarter of an optimizer step; and its reads."""
    setup = _setup(setup, MODULES["query and value"])
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

    least = _least({name: timer(step) for name, step in steps.items()}, rounds)
    rows = [
        Comparison(
            name=f"host time, training micro-batch, {name}: IMSM / our PEFT",
            ours=least[key],
            theirs=least["peft"],
            unit="ms",
            bar=bar,
        )
        for key, name, bar in (("cache", "hidden-state cache filled", 1.03), ("imsm", "no cache", 1.35))
    ]
    reads = Comparison(
        name="host reads of device values, training micro-batch, no cache: IMSM / the limit",
        ours=micro_batch_syncs(imsm, steps["imsm"]),
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


def _least(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the least of each timer's values, measured alternately after a first round."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for round_ in range(rounds + 1):
        for name, timer in timers.items():
            value = timer()
            if round_:
                found[name].append(value)
    return {name: min(values) for name, values in found.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
