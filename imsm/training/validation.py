"""Validation loss."""

from collections.abc import Sequence

import torch

from imsm.data.batching import MicroBatching
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import HiddenStateCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.base import Engine
from imsm.training.train_step import model_inputs


@torch.no_grad()
def validation_loss(
    model: SiameseForCausalLM,
    examples: Sequence[TokenizedExample],
    *,
    engine: Engine,
    micro_batching: MicroBatching,
    pad_id: int,
    hidden_state_cache: HiddenStateCache | None = None,
) -> float:
    """Return the mean cross-entropy over all answer tokens in nats, without dropout.

    ``examples`` are the same in every process; each evaluates its share. The model's mode is
    restored. Without a cache the original stream is run.
    """
    context = engine.dist_context
    parts = micro_batching.split(examples, rank=context.rank, world_size=context.world_size)
    answer_tokens = sum(len(example.answer_ids) for example in examples)
    was_training = model.training
    model.eval()
    loss = 0.0
    for micro in parts:
        # a process without examples left still has to take part in ZeRO's forward
        rows = micro or examples[:1]
        inputs = model_inputs(
            engine.device, rows, packed=micro_batching.packed, pad_id=pad_id, hidden_state_cache=hidden_state_cache
        )
        micro_loss = engine.forward(**inputs, num_items_in_batch=answer_tokens).loss
        assert micro_loss is not None
        loss += micro_loss.item() if micro else 0.0
    model.train(was_training)
    return engine.all_reduce_sum([loss])[0]
