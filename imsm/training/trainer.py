"""The training loop: batches in, steps out; it knows no method and no dataset by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from imsm.data.batching import training_order
from imsm.training.checkpoint import TrainingState
from imsm.training.engines.base import NonFiniteError, PartialStepError
from imsm.training.engines.single_device import peak_memory, reset_peak_memory
from imsm.training.signals import GracefulShutdown
from imsm.training.train_step import train_step
from imsm.training.validation import validation_loss
from imsm.utils.errors import RunError
from imsm.utils.oom import is_out_of_memory
from imsm.utils.progress import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from imsm.data.tokenization import TokenizedExample
    from imsm.models.adapters.base import TrainingCallbacks
    from imsm.models.siamese.hidden_state_cache import HiddenStateCache
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.checkpoint_manager import CheckpointManager
    from imsm.training.engines.base import Engine

_STILL = 2
"""So many first steps run the original stream though there is a bank.

Until a step with a rate above 0 (the first or, after a warm-up's 0, the second) the adapter changes
nothing: both memories are equal bit for bit, and the gate has no gradient. A bank's rounding would
give it one, which Adam scales to a whole step in a random direction.
"""
GetBank = Callable[[], "HiddenStateCache | None"]
"""Gives the memory bank, filled; called when the first step is due that reads it."""
Log = Callable[[int, dict[str, float]], None]
"""Takes the step and what was measured at it."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How examples become steps; ``batch_size`` is the global batch of one optimizer step.

    ``group_by_length``: examples of like length share a batch (`training_order`).
    """

    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int
    group_by_length: bool = False

    def steps(self, examples: int) -> int:
        """Optimizer steps of the whole training; an epoch's last batch may be smaller."""
        return self.epochs * math.ceil(examples / self.batch_size)

    def order(self, items: Sequence[TokenizedExample]) -> list[list[int]]:
        """The global batch of every step, as indices of the examples."""
        lengths = [len(item.prompt_ids) + len(item.answer_ids) for item in items]
        return [
            batch
            for epoch in range(self.epochs)
            for batch in training_order(
                len(items),
                batch_size=self.batch_size,
                seed=self.seed,
                epoch=epoch,
                lengths=lengths if self.group_by_length else None,
            )
        ]


@dataclass(kw_only=True)
class TrainingSummary:
    """What training took and where it ended.

    ``tokens`` counts all real tokens of a pass over the data, prompt and answer; seconds and
    tokens include what an interrupted run had done up to its checkpoint, the peak of memory (the
    largest of all processes) does not. ``memory_bank``: whether a step read one;
    if it was filled here, the peak is of that too.
    """

    steps: int
    seconds: float
    tokens: int
    final_loss: float | None
    peak_memory_bytes: int | None
    memory_bank: bool = False

    def record(self) -> dict[str, float | int | None]:
        """As `result.json` keeps it."""
        rate = self.tokens / self.seconds if self.seconds else None
        return asdict(self) | {"tokens_per_second": rate}


def train(
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    *,
    engine: Engine,
    hooks: TrainingCallbacks | None,
    batching: BatchPlan,
    keeper: CheckpointManager,
    pad_id: int,
    log: Log,
    validation: Sequence[TokenizedExample] = (),
    bank: GetBank | None = None,
) -> TrainingSummary:
    """Train ``model``'s adapter and gate on ``items``, from the keeper's checkpoint on.

    Args:
        model: what is trained; several processes have one each.
        items: the training examples.
        engine: what moves the parameters.
        hooks: the PEFT method's.
        batching: how examples become steps.
        keeper: of the checkpoints.
        pad_id: the padding token.
        log: told of every step.
        validation: examples that are not learned; their loss is measured before each checkpoint.
        bank: of the original's memories of all these examples; None, or if it gives none: the
            original stream runs, as it does in the first two steps. Filling it is no part of the
            seconds that training took.

    Raises:
        RunError: the loss or a gradient is not finite, or memory does not suffice; the last good
            state is kept.
        KeyboardInterrupt: after a checkpoint of all finished steps was written.
    """
    order = batching.order(items)
    rank, seed = engine.dist_context.rank, batching.seed
    torch.manual_seed(hash((seed, rank)) if rank else seed)  # dropout; a checkpoint brings its own
    so_far = before = keeper.restore(steps=len(order))
    reset_peak_memory(engine.device)
    started = time.monotonic()
    read: HiddenStateCache | None = None
    model.train()
    with (
        GracefulShutdown() as interrupt,
        progress_bar(
            order[before.step :],
            total=len(order),
            done=before.step,
            label="training",
            unit="step",
            shown=engine.dist_context.is_main,
        ) as steps,
    ):
        for step, indices in enumerate(steps, start=before.step + 1):
            batch = [items[index] for index in indices]
            if bank is not None and step > _STILL:
                asked = time.monotonic()
                read = _asked(bank, interrupt, keeper, so_far)
                started += time.monotonic() - asked
            with _explained(keeper, so_far, micro_batch_size=batching.micro_batch_size):
                measured = train_step(
                    batch,
                    step=step,
                    engine=engine,
                    hooks=hooks,
                    micro_batch_size=batching.micro_batch_size,
                    pad_id=pad_id,
                    bank=read,
                )
            so_far = TrainingState(
                step=step,
                seconds=before.seconds + time.monotonic() - started,
                tokens=so_far.tokens + sum(len(i.prompt_ids) + len(i.answer_ids) for i in batch),
                loss=measured["loss"],
            )
            speed = (so_far.tokens - before.tokens) / (so_far.seconds - before.seconds)
            measured["tokens_per_second"] = speed
            shown = f"loss {measured['loss']:.3f}, {speed:,.0f} tokens/s"
            steps.set_postfix_str(shown, refresh=False)
            due = keeper.is_save_step(step) or step == len(order)  # alike in every process
            if due and validation:
                found = validation_loss(
                    model,
                    validation,
                    engine=engine,
                    micro_batch_size=batching.micro_batch_size,
                    pad_id=pad_id,
                    bank=read,
                )
                measured["validation_loss"] = found
            log(step, measured)
            # one process may have had a signal, or think that it is time, before another
            wanted = due or keeper.is_save_time() or interrupt.save_requested
            stop, save = engine.all_reduce_sum([interrupt.requested, wanted])
            if stop or save:
                keeper.save(so_far, measured)
                interrupt.save_requested = False
            if stop:
                raise KeyboardInterrupt
        if engine.all_reduce_sum([interrupt.requested])[0]:  # after the last step's checkpoint
            raise KeyboardInterrupt
    model.eval()
    peaks = [int(text) for text in engine.dist_context.all_gather(str(peak_memory(engine.device) or 0))]
    return TrainingSummary(
        steps=so_far.step,
        seconds=so_far.seconds,
        tokens=so_far.tokens,
        final_loss=so_far.loss,
        peak_memory_bytes=max(peaks) or None,
        memory_bank=read is not None,
    )


def _asked(
    bank: GetBank, interrupt: GracefulShutdown, keeper: CheckpointManager, so_far: TrainingState
) -> HiddenStateCache | None:
    """The bank; who interrupts while it is filled need not wait for that.

    Several processes have it filled before they train: what one of them did alone, the others would
    wait for.
    """
    if keeper.engine.dist_context.size > 1:
        return bank()
    try:
        with interrupt.immediate():
            return bank()
    except KeyboardInterrupt:
        keeper.save_if_finite(so_far)
        raise


@contextmanager
def _explained(keeper: CheckpointManager, so_far: TrainingState, *, micro_batch_size: int) -> Iterator[None]:
    """What ends a step becomes one line with what to do; what was learned before it is kept."""
    try:
        yield
    except NonFiniteError as error:
        raise RunError(_stopped(error, keeper, so_far)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        alone = keeper.engine.dist_context.size == 1  # others do not know, and wait
        whole = alone and not isinstance(error, PartialStepError)
        newest = keeper.save_if_finite(so_far) if whole else keeper.newest()
        told = _too_much(micro_batch_size, step=so_far.step + 1, newest=newest)
        raise RunError(told) from error


def _stopped(error: NonFiniteError, keeper: CheckpointManager, so_far: TrainingState) -> str:
    """What to say when a value is not finite, having saved the last good state if it is good."""
    newest = keeper.save_if_finite(so_far)
    place = f"the last good checkpoint is {newest}" if newest else "no step was finished before it"
    return (
        f"{error}: training stopped, {place}. Try a lower trainer.learning_rate, "
        "trainer.max_grad_norm=1.0 or backbone.dtype=float32"
    )


def _too_much(micro_batch_size: int, *, step: int, newest: Path | None) -> str:
    """What to say when memory does not suffice for a step."""
    smaller = f"trainer.micro_batch_size={micro_batch_size // 2}" if micro_batch_size > 1 else None
    ways = [smaller, "trainer.gradient_checkpointing=true", "backbone.dtype=bfloat16"]
    kept = f"; the last checkpoint is {newest}" if newest else ""
    return (
        f"out of memory at step {step} with {micro_batch_size} examples in a pass: try "
        f"{', '.join(way for way in ways if way)}{kept}"
    )
