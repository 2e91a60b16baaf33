"""Training time of a sweep: IMSM with a shared hidden-state cache, and plain PEFT."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint_manager import CheckpointManager
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.hidden_state_store import get_or_compute, make_cache_key, open_cache
from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from imsm.training.trainer import BatchPlan, train
from scripts.bench.comparison import Comparison
from scripts.bench.steps import train_step
from scripts.bench.timing import now
from scripts.bench.workloads import METHODS, Setup, build, random_batch

if TYPE_CHECKING:
    from imsm.models.siamese.hidden_state_cache import HiddenStateCache
    from imsm.models.siamese.streams import Stream

RANKS, EPOCHS, STEPS = (4, 8), 2, 60


def compare_sweep(setup: Setup) -> list[Comparison]:
    """Two methods by two gate ranks, 60 steps each, computing the cache included; alternating."""
    ours, theirs = sweep_seconds(setup)
    return [
        Comparison(
            name="training four runs, miniature, filling the cache included: IMSM / our PEFT",
            ours=ours[-1],
            theirs=theirs[-1],
            unit="s",
            bar=1.15,
        )
    ]


def sweep_seconds(setup: Setup, *, num_runs: int = 4) -> tuple[list[float], list[float]]:
    """Return the cumulative seconds after each run of a sweep, of IMSM and of PEFT."""
    items = random_batch(setup, vocabulary=_vocabulary(setup), rows=setup.batch * STEPS // EPOCHS)
    seconds: dict[Stream, list[float]] = {"interwoven": [0.0], "tuned": [0.0]}
    train_step(build(setup, stream="tuned"), setup)()  # warm-up
    with tempfile.TemporaryDirectory() as folder, cache_in(folder):
        choices = list(product(METHODS, RANKS))
        for number in range(num_runs):
            method, rank = choices[number % len(choices)]
            turns: list[Stream] = ["tuned", "interwoven"]
            for stream in turns if number % 2 else reversed(turns):
                model = build(replace(setup, gate_rank=rank), stream=stream, method=method)
                run_dir = Path(folder) / f"{stream}{number}"
                start = now(setup.device)
                cache = _open_cache(model, items) if stream == "interwoven" else None
                _train(model, items, setup, cache=cache, folder=run_dir)
                seconds[stream].append(seconds[stream][-1] + now(setup.device) - start)
    return seconds["interwoven"][1:], seconds["tuned"][1:]


def _vocabulary(setup: Setup) -> int:
    return int(build(setup, stream="tuned").config.vocab_size)


def _open_cache(model: SiameseForCausalLM, items: Sequence[TokenizedExample]) -> HiddenStateCache:
    """Return the cache as a run gets it: from disk, computed by the first run, verified."""
    key = make_cache_key(
        items, backbone="bench", dtype=str(model.dtype), attention=None, pooling="mean", device=model.device
    )
    return open_cache(get_or_compute(key, model, items, pad_id=0, label="bench"), items)


def _train(
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    setup: Setup,
    *,
    cache: HiddenStateCache | None,
    folder: Path,
) -> None:
    """Run the real training loop, including the final checkpoint."""
    optimizer = build_optimizer(model, name="adamw", learning_rate=3e-4, gate_learning_rate=None, weight_decay=0.0)
    batching = BatchPlan(
        num_epochs=EPOCHS, global_batch_size=setup.batch, micro_batching=MicroBatching(size=setup.batch), seed=0
    )
    schedule = build_lr_scheduler(
        optimizer, lr_scheduler_type="linear", warmup_ratio=0.1, num_training_steps=batching.num_steps(len(items))
    )
    engine = SingleDeviceEngine(
        model, optimizer=optimizer, lr_scheduler=schedule, max_grad_norm=1.0, device=torch.device(setup.device)
    )
    train(
        model,
        items,
        engine=engine,
        callbacks=None,
        batch_plan=batching,
        checkpoint_manager=CheckpointManager(
            folder=folder, identity={}, engine=engine, callbacks=None, save_minutes=60
        ),
        pad_id=0,
        log=lambda step, measured: None,
        get_hidden_state_cache=lambda: cache,
    )


@contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """Store caches in ``folder``."""
    before = os.environ.get("IMSM_CACHE")
    os.environ["IMSM_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["IMSM_CACHE"]
        else:
            os.environ["IMSM_CACHE"] = before
