"""Two adapters in one siamese model: the second one's stream stands where the original's did.

What two streams cost, without the original: it tells "two streams" from "the original stream".
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import LogitMixer, LogitMixingModel, Mix, derive_model


class TwoAdapterStreams(StreamRunner):
    """Streams of two adapters; "original" means the other one's.

    Args:
        model: the first adapter's.
        body: likewise.
        other: the streams of the second.
    """

    def __init__(self, model: nn.Module, body: nn.Module, *, other: StreamRunner) -> None:
        super().__init__(model, body)
        self.other = other
        self.doubled = False

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """The memories (B, T, D) of the first adapter ("tuned") or of the second ("original")."""
        if stream == "original":
            return self.other.hidden_states(inputs, stream="tuned", cache=cache)
        return super().hidden_states(inputs, stream=stream, cache=cache)


class TwoAdapterModel(LogitMixingModel):
    """Answers with a mix of what two adapters say."""

    def new_cache(self, *, query_mask: torch.Tensor | None = None) -> Cache:
        """As of a siamese model; a learned prompt stands before the first stream's tokens too."""
        cache = super().new_cache(query_mask=query_mask)
        virtual = self.streams.other.virtual_tokens if isinstance(self.streams, TwoAdapterStreams) else None
        if virtual is not None:
            cache.virtual = virtual.count  # type: ignore[attr-defined]
        return cache


def build_ensemble(model: SiameseForCausalLM, other: SiameseForCausalLM, mix: Mix) -> TwoAdapterModel:
    """A model that mixes the logits of two adapters on the same backbone.

    Args:
        model: the first; its weights are shared.
        other: the second.
        mix: as of `mixed`; "original" means ``other``.
    """
    made = derive_model(model, TwoAdapterModel, stream="interwoven", gate=LogitMixer(mix))
    made.streams = TwoAdapterStreams(model.adapted, model.streams.decoder, other=other.streams)
    return made


@torch.no_grad()
def share_backbone(model: SiameseForCausalLM, other: SiameseForCausalLM) -> int:
    """Let ``other`` use the weights of ``model``'s backbone wherever they are equal.

    Returns:
        How many values are in memory once that were there twice.
    """
    adapted = {_plain(name): value for name, value in model.backbone.named_parameters()}
    saved = 0
    for name, value in other.backbone.named_parameters():
        same = adapted.get(_plain(name))
        if same is not None and not value.requires_grad and torch.equal(value, same):
            value.data = same.data
            saved += value.numel()
    return saved


def _plain(name: str) -> str:
    """A weight's name without what an adapter's layers put around it."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")
