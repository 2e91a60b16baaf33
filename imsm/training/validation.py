"""The loss on examples that are not learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from imsm.data.batching import micro_batches
from imsm.training.train_step import on_device

if TYPE_CHECKING:
    from imsm.data.tokenization import TokenizedExample
    from imsm.models.siamese.hidden_state_cache import HiddenStateCache
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.base import Engine


@torch.no_grad()
def validation_loss(
    model: SiameseForCausalLM,
    items: Sequence[TokenizedExample],
    *,
    engine: Engine,
    micro_batch_size: int,
    pad_id: int,
    bank: HiddenStateCache | None = None,
) -> float:
    """The mean cross-entropy over all answer tokens of ``items``, in nats, without dropout.

    Args:
        model: as it is now; its mode is left as it was.
        items: the same in every process; each takes its part of them.
        engine: what passes run through.
        micro_batch_size: examples of one pass.
        pad_id: the padding token.
        bank: of the original's memories, if there is one.
    """
    dist_context, training = engine.dist_context, model.training
    parts = micro_batches(
        items, micro_batch_size=micro_batch_size, rank=dist_context.rank, processes=dist_context.size
    )
    answer_tokens = sum(len(item.answer_ids) for item in items)
    model.eval()
    loss = 0.0
    for micro in parts:  # a process that has nothing left takes part in the pass all the same
        tensors = on_device(engine.device, micro or items[:1], pad_id=pad_id, bank=bank)
        share = engine.forward(**tensors, num_items_in_batch=answer_tokens).loss
        assert share is not None
        loss += share.item() if micro else 0.0
    model.train(training)
    return engine.all_reduce_sum([loss])[0]
