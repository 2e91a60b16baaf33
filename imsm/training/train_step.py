"""One optimizer step over a global batch."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from imsm.data.batching import MicroBatching, collate_packed, collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.models.adapters.base import TrainingCallbacks
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.inputs import to_device
from imsm.models.siamese.kl import Objective
from imsm.models.siamese.model import SiameseOutput
from imsm.models.siamese.route_loss import ORIGINAL, TARGET
from imsm.training.determinism import deterministic_algorithms
from imsm.training.engines.base import Engine, NonFiniteError, PartialStepError
from imsm.training.rehearsal import Rehearsal
from imsm.utils.oom import is_out_of_memory


def train_step(
    batch: Sequence[Sequence[TokenizedExample]],
    *,
    step: int,
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    micro_batching: MicroBatching,
    pad_id: int,
    groups_per_step: int = 1,
    hidden_state_cache: HiddenStateCache | None = None,
    rehearsal: Rehearsal | None = None,
    rehearsal_cache: HiddenStateCache | None = None,
    route: bool = False,
    deterministic: bool = False,
) -> dict[str, float]:
    """Run one optimizer step and return its metrics.

    ``batch`` has the groups of the global batch, the same in every process; each takes its share in micro-batches.
    The loss is the sum over groups of their mean per answer token, divided by ``groups_per_step``. With ``rehearsal``
    the gradient is that of this loss and of the weighted loss of the step's texts (`imsm.training.rehearsal`).
    With ``route`` the gate learns from its route loss alone, half of which is the mean over the target's answer
    tokens and half that over the texts'; a frozen adapter has no other loss. With ``deterministic`` the gradient is
    computed with deterministic algorithms.

    Raises:
        UserError: With ``deterministic``: an operation has no such algorithm on this device.
        NonFiniteError: The loss or the gradient norm is not finite; nothing was updated.
        PartialStepError: Out of memory while the parameters were being updated.
    """
    rates = engine.learning_rates()  # before the step, which advances the LR scheduler
    texts = rehearsal.batch(step) if rehearsal is not None else []
    options: dict[str, Any] = {"engine": engine, "callbacks": callbacks, "pad_id": pad_id}
    options |= {"micro_batching": micro_batching, "metrics": (scalars := _Scalars()), "route": route}
    options["is_last"] = not texts
    # not the update: it adds in one order, and AdaLoRA's kthvalue, whose values are exact, is rejected on CUDA
    with deterministic_algorithms(deterministic):
        _backward_target(batch, groups_per_step=groups_per_step, hidden_state_cache=hidden_state_cache, **options)
        if rehearsal is not None and texts:
            options |= {"hidden_state_cache": rehearsal_cache, "is_last": True}
            _backward_texts(texts, loss=rehearsal.loss, weight=rehearsal.weight, **options)
    sums = scalars.read()
    sums = dict(zip(sums, engine.all_reduce_sum(list(sums.values())), strict=True))
    # the reduced loss, so that all processes raise, before anything is updated
    total = sum(sums.get(key, 0.0) for key in ("loss", "auxiliary_loss", "rehearsal_loss", "gate_loss"))
    if not math.isfinite(total):
        raise NonFiniteError(f"the loss of step {step} is {total}")
    norm = _optimizer_step(engine, callbacks, step)
    # not finite in a step that loss scaling has skipped; JSON has no such number
    metrics = {"loss": sums.pop("loss")} | ({"gradient_norm": norm} if math.isfinite(norm) else {})
    return metrics | {f"learning_rate_{group}": rate for group, rate in rates.items()} | sums


class _Scalars:
    """Sums of scalars on the device, which are read once per step: each read waits for all queued work."""

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[torch.Tensor, float]]] = {}

    def add(self, name: str, value: torch.Tensor | None, *, weight: float = 1.0) -> None:
        """Add ``weight`` times a value to a sum; None: the name has no value. A weight of 0 still names the sum."""
        if value is not None:
            self._terms.setdefault(name, []).append((value.detach(), weight))

    def read(self) -> dict[str, float]:
        """Return the sums."""
        values = [value.float() for terms in self._terms.values() for value, _ in terms]
        numbers = iter(torch.stack(values).tolist() if values else [])
        sums = {name: [(next(numbers), weight) for _, weight in terms] for name, terms in self._terms.items()}
        # not a product with 0: the value of an empty micro-batch may be infinite
        return {name: sum((n * weight for n, weight in terms if weight), 0.0) for name, terms in sums.items()}


def _backward_target(
    batch: Sequence[Sequence[TokenizedExample]],
    *,
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    micro_batching: MicroBatching,
    metrics: _Scalars,
    pad_id: int,
    groups_per_step: int,
    hidden_state_cache: HiddenStateCache | None,
    is_last: bool,
    route: bool,
) -> None:
    """Accumulate the gradient of the target's loss, and this process's share of the step's metrics.

    ``is_last`` is whether no other backward pass of the step follows.
    """
    answer_tokens = sum(map(_answer_tokens, batch))
    parts = _parts(batch, micro_batching, engine)
    for number, (micro, group) in enumerate(parts, start=1):
        # ZeRO needs the same number of forwards in every process: an empty micro-batch has weight 0
        examples, counts = micro or group[:1], float(bool(micro))
        inputs = model_inputs(
            engine.device, examples, packed=micro_batching.packed, pad_id=pad_id, hidden_state_cache=hidden_state_cache
        )
        divisor = _answer_tokens(group) * groups_per_step
        label = TARGET if route else None
        output = _forward(examples, inputs, engine=engine, callbacks=callbacks, divisor=divisor, gate_target=label)
        micro_loss = _total_loss(output)
        metrics.add("loss", _main_loss(output), weight=counts)
        auxiliary = callbacks.auxiliary_loss() if callbacks is not None else None
        if auxiliary is not None:
            # a mean over the micro-batch's examples; the loss is already divided by all answer tokens
            auxiliary = auxiliary * (len(micro) / (len(group) * groups_per_step))
            metrics.add("auxiliary_loss", auxiliary)
            micro_loss = micro_loss + auxiliary
        # 0 * loss, not a skipped backward: ZeRO's gradient hooks have to run
        engine.backward(micro_loss if micro else 0 * micro_loss, last=is_last and number == len(parts))
        metrics.add("kl_to_original", output.divergence, weight=counts)
        metrics.add("gate_loss", output.route_loss, weight=counts)
        metrics.add("gate_mean", output.gate_mean, weight=_answer_tokens(micro) / answer_tokens)


def _backward_texts(
    texts: Sequence[TokenizedExample],
    *,
    loss: Objective,
    weight: float,
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    micro_batching: MicroBatching,
    metrics: _Scalars,
    pad_id: int,
    hidden_state_cache: HiddenStateCache | None,
    is_last: bool,
    route: bool,
) -> None:
    """Accumulate the gradient of the texts' weighted loss, and this process's share of their metrics."""
    tokens = _answer_tokens(texts)
    parts = _parts([texts], micro_batching, engine)
    options: dict[str, Any] = {"divisor": tokens, "objective": loss, "gate_target": ORIGINAL if route else None}
    for number, (micro, group) in enumerate(parts, start=1):
        examples, counts = micro or group[:1], float(bool(micro))
        inputs = model_inputs(
            engine.device, examples, packed=micro_batching.packed, pad_id=pad_id, hidden_state_cache=hidden_state_cache
        )
        output = _forward(examples, inputs, engine=engine, callbacks=callbacks, **options)
        if callbacks is not None:
            # ends the recording of this forward pass; the auxiliary loss is the target's alone
            callbacks.auxiliary_loss()
        engine.backward(counts * _total_loss(output, weight), last=is_last and number == len(parts))
        metrics.add("rehearsal_loss", _main_loss(output), weight=counts)
        metrics.add("rehearsal_gate_loss", output.route_loss, weight=counts)
        metrics.add("rehearsal_gate_mean", output.gate_mean, weight=_answer_tokens(micro) / tokens)


def _main_loss(output: SiameseOutput) -> torch.Tensor:
    """Return the loss that is reported: of a frozen adapter's gate the route loss."""
    loss = output.loss if output.loss is not None else output.route_loss
    assert loss is not None
    return loss


def _total_loss(output: SiameseOutput, weight: float = 1.0) -> torch.Tensor:
    """Return the loss to differentiate; the route losses of target and texts count half each."""
    if output.route_loss is None:
        return weight * _main_loss(output)
    gate = output.route_loss / 2
    return gate if output.loss is None else weight * output.loss + gate


def _parts(
    batch: Sequence[Sequence[TokenizedExample]], micro_batching: MicroBatching, engine: Engine
) -> list[tuple[Sequence[TokenizedExample], Sequence[TokenizedExample]]]:
    """Return this process's micro-batches, each with the group that it is from."""
    context = engine.dist_context
    split = {"rank": context.rank, "world_size": context.world_size}
    return [(micro, group) for group in batch for micro in micro_batching.split(group, **split)]


def _answer_tokens(examples: Sequence[TokenizedExample]) -> int:
    return sum(len(example.answer_ids) for example in examples)


def _forward(
    examples: Sequence[TokenizedExample],
    inputs: dict[str, torch.Tensor],
    *,
    engine: Engine,
    callbacks: TrainingCallbacks | None,
    divisor: int,
    objective: Objective = "target",
    gate_target: float | None = None,
) -> SiameseOutput:
    if callbacks is not None:
        types = torch.tensor([example.task_type for example in examples], device=engine.device)
        # a packed row has no padding
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        callbacks.before_forward(mask.to(engine.device), types)
    # omitted by default: other models of the same interface have no such arguments
    chosen: dict[str, Any] = {} if objective == "target" else {"objective": objective}
    chosen |= {} if gate_target is None else {"gate_target": gate_target}
    return engine.forward(**inputs, **chosen, num_items_in_batch=divisor)


def _optimizer_step(engine: Engine, callbacks: TrainingCallbacks | None, step: int) -> float:
    """Step the optimizer between the callbacks; return the gradient norm before clipping."""
    # gathering sharded tensors costs communication: only for callbacks that read them
    full_callbacks = callbacks if callbacks is not None and callbacks.needs_full_params else None
    try:
        if full_callbacks is not None:
            with engine.full_grads():
                full_callbacks.after_backward(step)
        norm = engine.step()
        if full_callbacks is not None:
            with engine.full_params():
                full_callbacks.after_step(step)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} at step {step}") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PartialStepError(str(error)) from error
    return norm


def model_inputs(
    device: torch.device,
    examples: Sequence[TokenizedExample],
    *,
    pad_id: int,
    hidden_state_cache: HiddenStateCache | None,
    packed: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the model's inputs for some examples: tokens, labels and cached hidden states.

    What selects positions stays on the CPU (`imsm.models.siamese.labels`).
    """
    inputs = collate_packed(examples) if packed else collate_training(examples, pad_id=pad_id)
    moved = {"input_ids": inputs["input_ids"]}
    moved |= hidden_state_cache.model_inputs(examples) if hidden_state_cache is not None else {}
    return inputs | {name: to_device(value, device) for name, value in moved.items()}
