"""The training loop: batches in, steps out; it knows no method and no dataset by name."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from imsm.data.batches import collate_training, training_order
from imsm.errors import RunError
from imsm.progress import bar
from imsm.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from imsm.training.interrupt import Interruptible

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
    tokens count this process's own work: a resumed run counts what it did itself.
    """

    steps: int
    seconds: float
    tokens: int
    final_loss: float | None
    peak_memory_bytes: int

    def record(self) -> dict[str, float | int | None]:
        """As `result.json` keeps it."""
        rate = self.tokens / self.seconds if self.seconds else None
        return asdict(self) | {"tokens_per_second": rate}


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where checkpoints go and how often, in minutes."""

    folder: Path
    minutes: float


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
    """Train ``model``'s adapter and gate on ``items``; goes on from a checkpoint if there is one.

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
    found = find_checkpoint(checkpointing.folder)
    done = load_checkpoint(found, model=model, engine=engine, hooks=hooks) if found else 0
    if found:
        tqdm.write(f"going on after step {done} of {len(order)} ({found})", file=sys.stderr)

    def save(step: int) -> None:
        save_checkpoint(checkpointing.folder, step=step, model=model, engine=engine, hooks=hooks)

    started = saved = time.monotonic()
    tokens, loss = 0, None
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
                raise RunError(_stopped(error, save, done, checkpointing.folder, model)) from error
            done, loss = step, measured["loss"]
            tokens += sum(len(item.prompt_ids) + len(item.answer_ids) for item in batch)
            speed = tokens / (time.monotonic() - started)
            log(step, {**measured, "tokens_per_second": speed})
            steps.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            due = time.monotonic() - saved > 60 * checkpointing.minutes
            if due or interrupt.requested:
                save(step)
                saved = time.monotonic()
            if interrupt.requested:
                raise KeyboardInterrupt
    model.eval()
    return TrainingSummary(
        steps=done,
        seconds=time.monotonic() - started,
        tokens=tokens,
        final_loss=loss,
        peak_memory_bytes=peak_memory(engine.device),
    )


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
    loss, gates = 0.0, []
    for first in range(0, len(batch), micro_batch_size):
        micro = batch[first : first + micro_batch_size]
        collated = collate_training(micro, pad_id=pad_id)
        tensors = {name: value.to(engine.device) for name, value in collated.items()}
        output = model(**tensors, num_items_in_batch=answer_tokens)
        share = output.loss
        loss += share.item()
        auxiliary = hooks.auxiliary_loss() if hooks is not None else None
        if auxiliary is not None:
            share = share + auxiliary * (len(micro) / len(batch))
        if not math.isfinite(share.item()):
            raise _NotFiniteError(f"the loss of step {step} is {share.item()}")
        engine.backward(share)
        if output.gate_mean is not None:
            gates.append(output.gate_mean.item() * len(micro) / len(batch))
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
    return measured | ({"gate_mean": sum(gates)} if gates else {})


def _stopped(
    error: _NotFiniteError,
    save: Callable[[int], None],
    done: int,
    folder: Path,
    model: SiameseForCausalLM,
) -> str:
    """What to say when a value is not finite, having saved the last good state if it is good."""
    good = all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)
    if good and done:
        save(done)
    kept = find_checkpoint(folder)
    place = f"the last good checkpoint is {kept}" if kept else "no step was finished before it"
    return (
        f"{error}: training stopped, {place}. Try a lower trainer.learning_rate, "
        "trainer.clip_norm=1.0 or backbone.dtype=float32"
    )


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
