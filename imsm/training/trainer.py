"""The training loop; independent of the PEFT method and the dataset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from imsm.data.batching import training_order
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.base import TrainingCallbacks
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint import TrainingState
from imsm.training.checkpoint_manager import CheckpointManager
from imsm.training.engines.base import Engine, NonFiniteError, PartialStepError
from imsm.training.engines.single_device import peak_memory, reset_peak_memory
from imsm.training.signals import GracefulShutdown
from imsm.training.train_step import train_step
from imsm.training.validation import validation_loss
from imsm.utils.errors import RunError
from imsm.utils.oom import is_out_of_memory
from imsm.utils.progress import progress_bar

_UNCACHED_STEPS = 2
"""First steps that run the original stream in spite of a cache.

Until a step with a learning rate above 0 (the first or, after a warmup's 0, the second) the
adapter is an identity: both streams' hidden states are bit-equal and the gate has no gradient.
The cache's rounding would give it one, which Adam scales to a full step in a random direction.
"""
GetHiddenStateCache = Callable[[], "HiddenStateCache | None"]
"""Returns the computed cache; called before the first step that reads it."""
Log = Callable[[int, dict[str, float]], None]
"""Receives a step and its metrics."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How examples are batched; ``group_by_length`` batches examples of similar length."""

    num_epochs: int
    global_batch_size: int
    micro_batch_size: int
    seed: int
    group_by_length: bool = False

    def num_steps(self, num_examples: int) -> int:
        """Return the optimizer steps of the training; an epoch's last batch may be smaller."""
        return self.num_epochs * math.ceil(num_examples / self.global_batch_size)

    def batches(self, examples: Sequence[TokenizedExample]) -> list[list[int]]:
        """Return the global batch of every step as example indices."""
        lengths = [_num_tokens(example) for example in examples] if self.group_by_length else None
        return [
            batch
            for epoch in range(self.num_epochs)
            for batch in training_order(
                len(examples), batch_size=self.global_batch_size, seed=self.seed, epoch=epoch, lengths=lengths
            )
        ]


@dataclass(kw_only=True)
class TrainingSummary:
    """Result of a training.

    ``seconds`` and ``tokens`` (prompt and answer, without padding) include the steps before a
    resume; ``peak_memory_bytes``, the maximum over processes, does not. ``hidden_state_cache``
    is whether a step read a cache; the peak includes computing it in this process.
    """

    steps: int
    seconds: float
    tokens: int
    final_loss: float | None
    peak_memory_bytes: int | None
    hidden_state_cache: bool = False

    def record(self) -> dict[str, float | int | None]:
        """Return the entries of `result.json`."""
        rate = self.tokens / self.seconds if self.seconds else None
        return asdict(self) | {"tokens_per_second": rate}


def train(
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    batch_plan: BatchPlan,
    checkpoint_manager: CheckpointManager,
    pad_id: int,
    log: Log,
    validation_examples: Sequence[TokenizedExample] = (),
    get_hidden_state_cache: GetHiddenStateCache | None = None,
) -> TrainingSummary:
    """Train adapter and gate, resuming from the checkpoint manager's checkpoint.

    ``model`` is the one that ``engine`` wraps. The loss of ``validation_examples`` is measured every
    `save_steps` and at the end. ``get_hidden_state_cache`` returns the original stream's hidden
    states of all examples, or None to run that stream, as the first two steps always do; the time
    it takes is not counted as training time.

    Raises:
        RunError: The loss or a gradient is not finite, or memory ran out; the last good state is
            saved.
        KeyboardInterrupt: After a signal, when all finished steps are saved.
    """
    batches = batch_plan.batches(examples)
    rank, seed = engine.dist_context.rank, batch_plan.seed
    torch.manual_seed(hash((seed, rank)) if rank else seed)  # for dropout; a checkpoint restores its own
    state = initial = checkpoint_manager.restore(total_steps=len(batches))
    reset_peak_memory(engine.device)
    cache: HiddenStateCache | None = None
    model.train()
    started = time.monotonic()
    with (
        GracefulShutdown() as shutdown,
        progress_bar(
            batches[initial.step :],
            total=len(batches),
            done=initial.step,
            label="training",
            unit="step",
            shown=engine.dist_context.is_main,
        ) as remaining,
    ):
        for step, indices in enumerate(remaining, start=initial.step + 1):
            batch = [examples[index] for index in indices]
            if get_hidden_state_cache is not None and step > _UNCACHED_STEPS:
                called = time.monotonic()
                cache = _get_cache(get_hidden_state_cache, shutdown, checkpoint_manager, state)
                started += time.monotonic() - called
            with _step_errors(checkpoint_manager, state, micro_batch_size=batch_plan.micro_batch_size):
                metrics = train_step(
                    batch,
                    step=step,
                    engine=engine,
                    callbacks=callbacks,
                    micro_batch_size=batch_plan.micro_batch_size,
                    pad_id=pad_id,
                    hidden_state_cache=cache,
                )
            state = TrainingState(
                step=step,
                seconds=initial.seconds + time.monotonic() - started,
                tokens=state.tokens + sum(map(_num_tokens, batch)),
                loss=metrics["loss"],
            )
            speed = (state.tokens - initial.tokens) / (state.seconds - initial.seconds)
            metrics["tokens_per_second"] = speed
            remaining.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
            save_step = checkpoint_manager.is_save_step(step) or step == len(batches)
            if save_step and validation_examples:
                metrics["validation_loss"] = validation_loss(
                    model,
                    validation_examples,
                    engine=engine,
                    micro_batch_size=batch_plan.micro_batch_size,
                    pad_id=pad_id,
                    hidden_state_cache=cache,
                )
            log(step, metrics)
            # signals and clocks differ between processes: stop or save if any process wants to
            save = save_step or checkpoint_manager.is_save_time() or shutdown.save_requested
            stop, save = map(bool, engine.all_reduce_sum([shutdown.requested, save]))
            if stop or save:
                checkpoint_manager.save(state, metrics)
                shutdown.save_requested = False
            if stop:
                raise KeyboardInterrupt
        # a signal during the last checkpoint
        if engine.all_reduce_sum([shutdown.requested])[0]:
            raise KeyboardInterrupt
    model.eval()
    peaks = [int(text) for text in engine.dist_context.all_gather(str(peak_memory(engine.device) or 0))]
    return TrainingSummary(
        steps=state.step,
        seconds=state.seconds,
        tokens=state.tokens,
        final_loss=state.loss,
        peak_memory_bytes=max(peaks) or None,
        hidden_state_cache=cache is not None,
    )


def _num_tokens(example: TokenizedExample) -> int:
    return len(example.prompt_ids) + len(example.answer_ids)


def _get_cache(
    get_hidden_state_cache: GetHiddenStateCache,
    shutdown: GracefulShutdown,
    checkpoint_manager: CheckpointManager,
    state: TrainingState,
) -> HiddenStateCache | None:
    """Return the cache; a signal interrupts its computation in a single process.

    With several processes it is computed before training: others would wait for the one here.
    """
    if checkpoint_manager.engine.dist_context.world_size > 1:
        return get_hidden_state_cache()
    try:
        with shutdown.immediate():
            return get_hidden_state_cache()
    except KeyboardInterrupt:
        checkpoint_manager.save_if_finite(state)
        raise


@contextmanager
def _step_errors(
    checkpoint_manager: CheckpointManager, state: TrainingState, *, micro_batch_size: int
) -> Iterator[None]:
    """Turn a failed step into a RunError with a fix, after saving ``state`` where it is intact."""
    try:
        yield
    except NonFiniteError as error:
        newest = checkpoint_manager.save_if_finite(state)
        saved = f"the last good checkpoint is {newest}" if newest else "no step was finished before it"
        raise RunError(
            f"{error}: training stopped, {saved}. Try a lower trainer.learning_rate, "
            "trainer.max_grad_norm=1.0 or backbone.dtype=float32"
        ) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # saving is collective: other processes may still be in the step
        single_process = checkpoint_manager.engine.dist_context.world_size == 1
        intact = single_process and not isinstance(error, PartialStepError)
        newest = checkpoint_manager.save_if_finite(state) if intact else checkpoint_manager.newest()
        raise RunError(_out_of_memory(micro_batch_size, step=state.step + 1, newest=newest)) from error


def _out_of_memory(micro_batch_size: int, *, step: int, newest: Path | None) -> str:
    fixes = ["trainer.gradient_checkpointing=true", "backbone.dtype=bfloat16"]
    if micro_batch_size > 1:
        fixes.insert(0, f"trainer.micro_batch_size={micro_batch_size // 2}")
    saved = f"; the last checkpoint is {newest}" if newest else ""
    return f"out of memory at step {step} with micro_batch_size={micro_batch_size}: try {', '.join(fixes)}{saved}"
