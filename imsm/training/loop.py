"""The training loop: batches in, steps out; it knows no method and no dataset by name."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imsm.data.batches import collate_training, training_order
from imsm.errors import RunError
from imsm.progress import bar
from imsm.training.checkpoint import (
    Progress,
    checkpoints,
    load_checkpoint,
    room_for,
    save_checkpoint,
)
from imsm.training.interrupt import Interruptible
from imsm.training.memory import peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from imsm.adapters.adapter import Hooks
    from imsm.data.tokenise import TokenisedExample
    from imsm.siamese.model import SiameseForCausalLM
    from imsm.training.engine import Engine

Log = Callable[[int, dict[str, float]], None]
"""Takes the step and what was measured at it."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How examples become steps; ``batch_size`` is the global batch of one optimizer step."""

    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int

    def steps(self, examples: int) -> int:
        """Optimizer steps of the whole training; an epoch's last batch may be smaller."""
        return self.epochs * math.ceil(examples / self.batch_size)


@dataclass(kw_only=True)
class TrainingSummary:
    """What training took and where it ended.

    ``tokens`` counts all real tokens of a pass over the data, prompt and answer; seconds and
    tokens include what an interrupted run had done up to its checkpoint, the peak of memory does
    not.
    """

    steps: int
    seconds: float
    tokens: int
    final_loss: float | None
    peak_memory_bytes: int | None

    def record(self) -> dict[str, float | int | None]:
        """As `result.json` keeps it."""
        rate = self.tokens / self.seconds if self.seconds else None
        return asdict(self) | {"tokens_per_second": rate}


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where checkpoints go, how often, and where the training goes on.

    Attributes:
        folder: of the run's checkpoints.
        identity: what decides the training; a checkpoint carries it.
        minutes: between two checkpoints.
        steps: between two checkpoints, in place of or beside the minutes; None: minutes alone.
        keep: how many stay.
        start: the checkpoint to go on from; None: begin.
    """

    folder: Path
    identity: Mapping[str, Any]
    minutes: float
    steps: int | None = None
    keep: int = 2
    start: Path | None = None

    def due(self, step: int, seconds: float) -> bool:
        """Whether a step is to be kept, so many seconds after the last one that was."""
        return seconds > 60 * self.minutes or (self.steps is not None and step % self.steps == 0)


def train(
    model: SiameseForCausalLM,
    items: Sequence[TokenisedExample],
    *,
    engine: Engine,
    hooks: Hooks | None,
    batching: Batching,
    checkpointing: Checkpointing,
    pad_id: int,
    log: Log,
) -> TrainingSummary:
    """Train ``model``'s adapter and gate on ``items``, from ``checkpointing.start`` on.

    Raises:
        RunError: the loss or a gradient is not finite; the last good checkpoint is kept.
        KeyboardInterrupt: after a checkpoint of all finished steps was written.
    """
    order = [
        batch
        for epoch in range(batching.epochs)
        for batch in training_order(
            len(items), batch_size=batching.batch_size, seed=batching.seed, epoch=epoch
        )
    ]
    torch.manual_seed(batching.seed)  # dropout; a checkpoint brings its own random state
    so_far = Progress()
    if checkpointing.start is not None:
        so_far = load_checkpoint(checkpointing.start, model=model, engine=engine, hooks=hooks)
        at = f"step {so_far.step} of {len(order)}"
        print(f"going on after {at} ({checkpointing.start})", file=sys.stderr)
    _warn_of_a_full_disk(model, checkpointing.folder)
    reset_peak_memory(engine.device)
    started = saved = time.monotonic()

    def save(progress: Progress) -> None:
        save_checkpoint(
            checkpointing.folder,
            progress=progress,
            model=model,
            engine=engine,
            hooks=hooks,
            identity=checkpointing.identity,
            keep=checkpointing.keep,
        )

    before, done = so_far, so_far.step
    model.train()
    with (
        Interruptible() as interrupt,
        bar(order[done:], total=len(order), done=done, label="training", unit="step") as steps,
    ):
        for step, indices in enumerate(steps, start=done + 1):
            batch = [items[index] for index in indices]
            try:
                measured = _step(
                    model,
                    batch,
                    step=step,
                    engine=engine,
                    hooks=hooks,
                    micro_batch_size=batching.micro_batch_size,
                    pad_id=pad_id,
                )
            except _NotFiniteError as error:
                raise RunError(
                    _stopped(error, save, so_far, checkpointing.folder, model)
                ) from error
            so_far = Progress(
                step=step,
                seconds=before.seconds + time.monotonic() - started,
                tokens=so_far.tokens + sum(len(i.prompt_ids) + len(i.answer_ids) for i in batch),
                loss=measured["loss"],
            )
            speed = (so_far.tokens - before.tokens) / (so_far.seconds - before.seconds)
            log(step, {**measured, "tokens_per_second": speed})
            shown = f"loss {measured['loss']:.3f}, {speed:,.0f} tokens/s"
            steps.set_postfix_str(shown, refresh=False)
            due = checkpointing.due(step, time.monotonic() - saved) or interrupt.save_requested
            if due or interrupt.requested or step == len(order):
                save(so_far)
                saved = time.monotonic()
                interrupt.save_requested = False
            if interrupt.requested:
                raise KeyboardInterrupt
    model.eval()
    return TrainingSummary(
        steps=so_far.step,
        seconds=so_far.seconds,
        tokens=so_far.tokens,
        final_loss=so_far.loss,
        peak_memory_bytes=peak_memory(engine.device),
    )


def _warn_of_a_full_disk(model: SiameseForCausalLM, folder: Path) -> None:
    """Say before the first step if a checkpoint will find no room: values and two moments each."""
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    warning = room_for(folder, size=3 * trainable)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


class _NotFiniteError(ArithmeticError):
    """A loss or gradient norm that is NaN or infinite."""


def _step(
    model: SiameseForCausalLM,
    batch: Sequence[TokenisedExample],
    *,
    step: int,
    engine: Engine,
    hooks: Hooks | None,
    micro_batch_size: int,
    pad_id: int,
) -> dict[str, float]:
    """One optimizer step over a global batch; the loss is a mean over all its answer tokens."""
    rates = engine.learning_rates()
    answer_tokens = sum(len(item.answer_ids) for item in batch)
    loss, added, gates = 0.0, [], []
    for first in range(0, len(batch), micro_batch_size):
        micro = batch[first : first + micro_batch_size]
        collated = collate_training(micro, pad_id=pad_id)
        tensors = {name: value.to(engine.device) for name, value in collated.items()}
        if hooks is not None:
            types = torch.tensor([item.task_type for item in micro], device=engine.device)
            hooks.before_forward(tensors["attention_mask"], types)
        output = model(**tensors, num_items_in_batch=answer_tokens)
        share = output.loss
        loss += share.item()
        auxiliary = hooks.auxiliary_loss() if hooks is not None else None
        if auxiliary is not None:
            auxiliary = auxiliary * (len(micro) / len(batch))
            added.append(auxiliary.item())
            share = share + auxiliary
        if not math.isfinite(share.item()):
            raise _NotFiniteError(f"the loss of step {step} is {share.item()}")
        engine.backward(share)
        if output.gate_mean is not None:
            part = sum(len(item.answer_ids) for item in micro) / answer_tokens
            gates.append(output.gate_mean.item() * part)
    norm = engine.clip()
    if not math.isfinite(norm):
        raise _NotFiniteError(f"the gradient norm of step {step} is {norm}")
    if hooks is not None:
        hooks.after_backward(step)
    engine.step()
    if hooks is not None:
        hooks.after_step(step)
    measured = {"loss": loss, "gradient_norm": norm}
    measured |= {f"learning_rate_{group}": rate for group, rate in rates.items()}
    measured |= {"auxiliary_loss": sum(added)} if added else {}
    return measured | ({"gate_mean": sum(gates)} if gates else {})


def _stopped(
    error: _NotFiniteError,
    save: Callable[[Progress], None],
    so_far: Progress,
    folder: Path,
    model: SiameseForCausalLM,
) -> str:
    """What to say when a value is not finite, having saved the last good state if it is good."""
    good = all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)
    if good and so_far.step:
        save(so_far)
    kept = checkpoints(folder)
    place = f"the last good checkpoint is {kept[0]}" if kept else "no step was finished before it"
    return (
        f"{error}: training stopped, {place}. Try a lower trainer.learning_rate, "
        "trainer.clip_norm=1.0 or backbone.dtype=float32"
    )
