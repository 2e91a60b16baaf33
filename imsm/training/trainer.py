"""The training loop; independent of the PEFT method and the dataset."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from tqdm import tqdm

from imsm.data.batching import MicroBatching, num_tokens, step_groups, training_order
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.base import TrainingCallbacks
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.checkpoint import TrainingState
from imsm.training.checkpoint_manager import CheckpointManager
from imsm.training.engines.base import Engine, NonFiniteError, PartialStepError
from imsm.training.engines.single_device import peak_memory, reset_peak_memory
from imsm.training.rehearsal import Rehearsal
from imsm.training.signals import GracefulShutdown
from imsm.training.train_step import train_step
from imsm.training.validation import validation_loss
from imsm.utils.errors import RunError
from imsm.utils.oom import is_out_of_memory
from imsm.utils.progress import progress_bar

# Until a step with a learning rate above 0 (the first or, after a warmup's 0, the second) the
# adapter is an identity: both streams' hidden states are bit-equal and the gate has no gradient.
# The cache's rounding would give it one, which Adam scales to a full step in a random direction.
_UNCACHED_STEPS = 2
"""First steps that run the original stream in spite of a cache."""
GetHiddenStateCache = Callable[[], HiddenStateCache | None]
"""Returns the hidden states of all examples, or None to run the original stream in every step."""
AtSaveStep = Callable[[int], dict[str, float]]
"""Receives a step whose checkpoint is about to be written; returns further metrics of it."""
Log = Callable[[int, dict[str, float]], None]
"""Receives a step and its metrics."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How examples are batched; ``group_by_length`` batches examples of similar length.

    The loss of a step is the mean over groups of each group's mean per answer token. A group is
    ``loss_group_size`` examples; None: the whole global batch. With ``carry_over`` an epoch's last
    groups that do not fill a step are part of the next epoch's first step.
    """

    num_epochs: int
    global_batch_size: int
    micro_batching: MicroBatching
    seed: int
    group_by_length: bool = False
    loss_group_size: int | None = None
    carry_over: bool = False

    @property
    def groups_per_step(self) -> int:
        """The groups of a full step."""
        return self.global_batch_size // self._group_size

    @property
    def _group_size(self) -> int:
        return self.loss_group_size or self.global_batch_size

    def num_steps(self, num_examples: int) -> int:
        """Return the optimizer steps of the training; an epoch's last batch may be smaller."""
        steps = math.ceil(num_examples / self._group_size) / self.groups_per_step
        return self.num_epochs * (math.floor(steps) if self.carry_over else math.ceil(steps))

    def num_scheduled_steps(self, num_examples: int) -> int:
        """Return the steps of the LR schedule, which also counts the steps that `carry_over` merges."""
        if not self.carry_over:
            return self.num_steps(num_examples)
        return math.ceil(num_examples / self._group_size) * self.num_epochs // self.groups_per_step

    def batches(self, examples: Sequence[TokenizedExample]) -> list[list[list[int]]]:
        """Return the groups of every step as example indices."""
        lengths = [num_tokens(example) for example in examples] if self.group_by_length else None
        epochs = (
            training_order(len(examples), batch_size=self._group_size, seed=self.seed, epoch=epoch, lengths=lengths)
            for epoch in range(self.num_epochs)
        )
        return step_groups(epochs, groups_per_step=self.groups_per_step, carry_over=self.carry_over)


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
        return asdict(self) | {"tokens_per_second": self.tokens / self.seconds if self.seconds else None}


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
    rehearsal: Rehearsal | None = None,
    route_share: float = 0.0,
    at_save_step: AtSaveStep | None = None,
    deterministic: bool = False,
) -> TrainingSummary:
    """Train adapter and gate, resuming from the checkpoint manager's checkpoint.

    ``model`` is the one that ``engine`` wraps. The loss of ``validation_examples`` is measured, and ``at_save_step``
    called, every `save_steps` and at the end. Neither this nor computing the hidden-state caches is counted as
    training time. In the first ``route_share`` of the steps the gate learns from the route loss
    (`imsm.models.siamese.route_loss`). ``deterministic`` is that of `train_step`.

    Raises:
        RunError: The loss or a gradient is not finite, or memory ran out; the last good state is saved.
        KeyboardInterrupt: After a signal, when all finished steps are saved.
    """
    batches, micro = batch_plan.batches(examples), batch_plan.micro_batching
    options: dict[str, Any] = {"engine": engine, "micro_batching": micro, "pad_id": pad_id}
    step_options = {**options, "callbacks": callbacks, "groups_per_step": batch_plan.groups_per_step}
    step_options["deterministic"] = deterministic
    _seed_dropout(batch_plan.seed, rank=engine.dist_context.rank)
    state = initial = checkpoint_manager.restore(total_steps=len(batches))
    reset_peak_memory(engine.device)
    caches: dict[str, Any] = {}
    model.train()
    timer = _Timer(initial.seconds)
    with GracefulShutdown() as shutdown, _progress(batches, engine=engine, done=initial.step) as remaining:
        for step, groups in enumerate(remaining, start=initial.step + 1):
            batch = [[examples[index] for index in group] for group in groups]
            if step > _UNCACHED_STEPS:
                caches = _get_caches(get_hidden_state_cache, rehearsal, shutdown, checkpoint_manager, state, timer)
            step_options["route"] = step <= route_share * len(batches)
            with _step_errors(checkpoint_manager, state, micro):
                metrics = train_step(batch, step=step, rehearsal=rehearsal, **caches, **step_options)
            tokens = state.tokens + sum(map(num_tokens, chain(*batch, rehearsal.batch(step) if rehearsal else [])))
            state = TrainingState(step=step, seconds=timer.seconds(), tokens=tokens, loss=metrics["loss"])
            _add_speed(metrics, state, initial=initial, bar=remaining)
            save_step = checkpoint_manager.is_save_step(step) or step == len(batches)
            if save_step:
                options["hidden_state_cache"] = caches.get("hidden_state_cache")
                metrics |= _measure(model, step, validation_examples, at_save_step, timer, **options)
            log(step, metrics)
            _save_or_stop(checkpoint_manager, shutdown, state, metrics, save_step=save_step)
        # a signal during the last checkpoint
        if engine.all_reduce_sum([shutdown.requested])[0]:
            raise KeyboardInterrupt
    model.eval()
    return _summary(state, engine=engine, used_cache=any(caches.values()))


def _seed_dropout(seed: int, *, rank: int) -> None:
    """Seed torch, differently in each process; a resume overwrites this with the checkpoint's own state."""
    torch.manual_seed(hash((seed, rank)) if rank else seed)


class _Timer:
    """Seconds of training, from those before a resume on."""

    def __init__(self, before: float) -> None:
        self._started = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the ``with`` block."""
        called = time.monotonic()
        yield
        self._started += time.monotonic() - called


def _measure(
    model: SiameseForCausalLM,
    step: int,
    validation_examples: Sequence[TokenizedExample],
    at_save_step: AtSaveStep | None,
    timer: _Timer,
    **options: Any,
) -> dict[str, float]:
    """Return the metrics of a save step; ``options`` are those of `validation_loss`.

    Mode and random state are restored, so that the training stays bit-equal.
    """
    metrics = {}
    with timer.paused():
        if validation_examples:
            metrics["validation_loss"] = validation_loss(model, validation_examples, **options)
        if at_save_step is not None:
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                model.eval()
                metrics |= at_save_step(step)
                model.train()
    return metrics


def _progress(batches: Sequence[Any], *, engine: Engine, done: int) -> tqdm:
    shown = engine.dist_context.is_main
    return progress_bar(batches[done:], total=len(batches), done=done, label="training", unit="step", shown=shown)


def _add_speed(metrics: dict[str, float], state: TrainingState, *, initial: TrainingState, bar: tqdm) -> None:
    """Add the tokens per second to a step's metrics, and show them."""
    # since the resume only: earlier steps may have run on another machine
    speed = (state.tokens - initial.tokens) / (state.seconds - initial.seconds)
    metrics["tokens_per_second"] = speed
    bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)


def _get_caches(
    get_hidden_state_cache: GetHiddenStateCache | None,
    rehearsal: Rehearsal | None,
    shutdown: GracefulShutdown,
    checkpoint_manager: CheckpointManager,
    state: TrainingState,
    timer: _Timer,
) -> dict[str, HiddenStateCache | None]:
    """Return the caches of examples and texts; a signal interrupts their computation in a single process."""

    def get() -> dict[str, HiddenStateCache | None]:
        with timer.paused():
            return {
                "hidden_state_cache": get_hidden_state_cache() if get_hidden_state_cache is not None else None,
                "rehearsal_cache": rehearsal.get_hidden_state_cache() if rehearsal is not None else None,
            }

    # several processes compute them before training: here the others would wait in a collective
    if checkpoint_manager.engine.dist_context.world_size > 1:
        return get()
    try:
        with shutdown.immediate():
            return get()
    except KeyboardInterrupt:
        checkpoint_manager.save_if_finite(state)
        raise


def _save_or_stop(
    checkpoint_manager: CheckpointManager,
    shutdown: GracefulShutdown,
    state: TrainingState,
    metrics: dict[str, float],
    *,
    save_step: bool,
) -> None:
    """Save a checkpoint if one is due or requested; raise KeyboardInterrupt after a stop signal."""
    # signals and clocks differ between processes: stop or save if any process wants to
    save = save_step or checkpoint_manager.is_save_time() or shutdown.save_requested
    stop, save = map(bool, checkpoint_manager.engine.all_reduce_sum([shutdown.requested, save]))
    if stop or save:
        checkpoint_manager.save(state, metrics)
        shutdown.save_requested = False
    if stop:
        raise KeyboardInterrupt


def _summary(state: TrainingState, *, engine: Engine, used_cache: bool) -> TrainingSummary:
    peaks = [int(text) for text in engine.dist_context.all_gather(str(peak_memory(engine.device) or 0))]
    return TrainingSummary(
        steps=state.step,
        seconds=state.seconds,
        tokens=state.tokens,
        final_loss=state.loss,
        peak_memory_bytes=max(peaks) or None,
        hidden_state_cache=used_cache,
    )


@contextmanager
def _step_errors(
    checkpoint_manager: CheckpointManager, state: TrainingState, micro_batching: MicroBatching
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
        fixes = ["trainer.gradient_checkpointing=true", "backbone.dtype=bfloat16"]
        key, value = "micro_batch_size", micro_batching.size
        if micro_batching.tokens is not None:
            key, value = "micro_batch_tokens", micro_batching.tokens
        if value > 1:
            fixes.insert(0, f"trainer.{key}={value // 2}")
        raise RunError(
            f"out of memory at step {state.step + 1} with {key}={value}: try "
            f"{', '.join(fixes)}{f'; the last checkpoint is {newest}' if newest else ''}"
        ) from error
