"""One optimizer step over a global batch, whatever it is cut into and whoever does the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from imsm.data.batching import collate_training, micro_batches
from imsm.training.engines.base import NonFiniteError, PartialStepError
from imsm.utils.oom import is_out_of_memory

if TYPE_CHECKING:
    from imsm.data.tokenization import TokenizedExample
    from imsm.models.adapters.base import TrainingCallbacks
    from imsm.models.siamese.hidden_state_cache import HiddenStateCache
    from imsm.training.engines.base import Engine


def train_step(
    batch: Sequence[TokenizedExample],
    *,
    step: int,
    engine: Engine,
    hooks: TrainingCallbacks | None,
    micro_batch_size: int,
    pad_id: int,
    bank: HiddenStateCache | None = None,
) -> dict[str, float]:
    """One step; its loss is the mean over all answer tokens of the batch.

    Each process takes its part of the batch, micro-batch by micro-batch. All run equally many
    passes, since ZeRO's processes wait for each other; one that has nothing left runs an example
    that does not count.

    Args:
        batch: the global batch, the same in every process.
        step: its number, from 1.
        engine: what moves the parameters.
        hooks: the PEFT method's.
        micro_batch_size: examples of one pass.
        pad_id: the padding token.
        bank: of the original's memories, if there is one.

    Returns:
        What was measured over the whole batch, by name.

    Raises:
        NotFiniteError: the loss or the gradients; nothing was moved.
        HalfMovedError: memory ran out too late.
    """
    rates = engine.learning_rates()
    answer_tokens = sum(len(item.answer_ids) for item in batch)
    dist_context = engine.dist_context
    parts = micro_batches(
        batch, micro_batch_size=micro_batch_size, rank=dist_context.rank, processes=dist_context.size
    )
    loss = added = gate = apart = 0.0
    has_auxiliary = has_gate = has_divergence = False
    for number, micro in enumerate(parts, start=1):
        counts = bool(micro)
        items = micro if counts else batch[:1]
        tensors = on_device(engine.device, items, pad_id=pad_id, bank=bank)
        if hooks is not None:
            types = torch.tensor([item.task_type for item in items], device=engine.device)
            hooks.before_forward(tensors["attention_mask"], types)
        output = engine.forward(**tensors, num_items_in_batch=answer_tokens)
        share = output.loss
        assert share is not None
        loss += share.item() if counts else 0.0
        auxiliary = hooks.auxiliary_loss() if hooks is not None else None
        if auxiliary is not None:
            has_auxiliary = True
            auxiliary = auxiliary * (len(micro) / len(batch))
            added += auxiliary.item()
            share = share + auxiliary
        engine.backward(share if counts else 0 * share, last=number == len(parts))
        if output.gate_mean is not None:
            has_gate = True
            part = sum(len(item.answer_ids) for item in micro) / answer_tokens
            gate += output.gate_mean.item() * part
        if output.divergence is not None:
            has_divergence = True
            apart += output.divergence.item() if counts else 0.0
    loss, added, gate, apart = engine.all_reduce_sum([loss, added, gate, apart])
    if not math.isfinite(loss + added):
        raise NonFiniteError(f"the loss of step {step} is {loss + added}")
    norm = _move(engine, hooks, step)
    measured = {"loss": loss, "gradient_norm": norm}
    measured |= {f"learning_rate_{group}": rate for group, rate in rates.items()}
    measured |= {"auxiliary_loss": added} if has_auxiliary else {}
    measured |= {"kl_to_original": apart} if has_divergence else {}
    return measured | ({"gate_mean": gate} if has_gate else {})


def _move(engine: Engine, hooks: TrainingCallbacks | None, step: int) -> float:
    """The optimizer's step between the hooks; the gradients' norm before clipping."""
    touching = hooks is not None and hooks.needs_full_params
    try:
        if hooks is not None and touching:
            with engine.full_grads():
                hooks.after_backward(step)
        norm = engine.step()
        if hooks is not None and touching:
            with engine.full_params():
                hooks.after_step(step)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} at step {step}") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PartialStepError(str(error)) from error
    return norm


def on_device(
    device: torch.device, items: Sequence[TokenizedExample], *, pad_id: int, bank: HiddenStateCache | None
) -> dict[str, torch.Tensor]:
    """What the model is given of some examples: tokens, labels and what a bank holds of them."""
    collated = collate_training(items, pad_id=pad_id)
    collated |= bank.inputs(items) if bank is not None else {}
    return {name: value.to(device) for name, value in collated.items()}
