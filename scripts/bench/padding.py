"""What padding costs a training step on examples of different lengths, and how much of it sorting and packing save."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from imsm.data.batching import MicroBatching, num_tokens
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.packed_sequences import packed_sdpa
from imsm.training.train_step import train_step
from scripts.bench.comparison import Comparison
from scripts.bench.gpu.session import Session
from scripts.bench.steps import engine_of
from scripts.bench.timing import medians, timed
from scripts.bench.workloads import Setup

SHAPE = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}
"""SmolLM2 135M's layers, fewer of them, with a small vocabulary: the head never reads padding."""
EXAMPLES, BUDGET = 32, 1024
BATCHINGS = {
    "in the data's order": MicroBatching(size=4, sort=False),
    "of similar length": MicroBatching(size=4),
    "of at most 1,024 tokens": MicroBatching(size=4, tokens=BUDGET),
    "packed rows of 1,024 tokens": MicroBatching(size=4, tokens=BUDGET, packed=True),
}
_BARS = {"packed rows of 1,024 tokens": 0.85}


def compare_padding(setup: Setup, *, rounds: int, shape: dict[str, Any] = SHAPE) -> list[Comparison]:
    """IMSM's step on 32 examples of GSM8K's lengths, by each way to form micro-batches, against four in data order."""
    setup = replace(setup, shape=shape, target_modules=["q_proj", "v_proj"], dtype="float32")
    session = Session(setup)
    model, examples = session.model, session.examples("gsm8k", EXAMPLES)
    engine = engine_of(model, setup)

    def step(batching: MicroBatching) -> None:
        model.train()
        with packed_sdpa(model.backbone) if batching.packed else nullcontext():
            train_step([examples], step=9, engine=engine, callbacks=None, micro_batching=batching, pad_id=0)

    timers = {name: timed(partial(step, each), device=setup.device) for name, each in BATCHINGS.items()}
    seconds = medians(timers, rounds=rounds)
    (first, padded), *others = seconds.items()
    share = 1 - sum(map(num_tokens, examples)) / padded_tokens(BATCHINGS[first], examples)
    return [
        Comparison(
            name=f"training step, GSM8K's lengths, micro-batches {name} / of 4 {first}, {share:.0%} padding",
            ours=found,
            theirs=padded,
            unit="s",
            bar=_BARS.get(name),
        )
        for name, found in others
    ]


def padded_tokens(batching: MicroBatching, examples: Sequence[TokenizedExample]) -> int:
    """Return the tokens of all micro-batches, padding included."""
    parts = batching.split(examples, rank=0, world_size=1)
    return sum(len(part) * max(map(num_tokens, part)) for part in parts)
