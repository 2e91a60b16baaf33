"""Two adapters in one siamese model: the second adapter's stream replaces the original's.

It costs as much as two streams, without the original: it separates the effect of "two streams" from that
of "the original stream".
"""

import torch
from torch import nn
from transformers import Cache

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import LogitMixer, LogitMixingModel, Mix, derive_model


class TwoAdapterStreams(StreamRunner):
    """Streams of two adapters; "original" selects the second, whose streams are ``other``."""

    def __init__(self, model: nn.Module, decoder: nn.Module, *, other: StreamRunner) -> None:
        super().__init__(model, decoder)
        self.other = other
        # The adapters are in two copies of the decoder, which cannot run as one batch.
        self.batch_both = False

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """Return hidden states (B, T, D) of the first adapter ("tuned") or the second ("original")."""
        if stream == "original":
            return self.other.hidden_states(inputs, stream="tuned", cache=cache)
        return super().hidden_states(inputs, stream=stream, cache=cache)


class TwoAdapterModel(LogitMixingModel):
    """A model that mixes the logits of two adapters."""

    def new_cache(self, *, query_mask: torch.Tensor | None = None) -> Cache:
        """Return an empty cache; virtual tokens of the second adapter count in the first cache."""
        cache = super().new_cache(query_mask=query_mask)
        virtual = self.streams.other.virtual_tokens if isinstance(self.streams, TwoAdapterStreams) else None
        if virtual is not None:
            cache.num_virtual = virtual.count  # type: ignore[attr-defined]
        return cache


def build_ensemble(model: SiameseForCausalLM, other: SiameseForCausalLM, mix: Mix) -> TwoAdapterModel:
    """Build a model that mixes the logits of two adapters; ``other`` takes the original's place in ``mix``."""
    ensemble = derive_model(model, TwoAdapterModel, stream="interwoven", gate=LogitMixer(mix))
    ensemble.streams = TwoAdapterStreams(model.adapted, model.streams.decoder, other=other.streams)
    return ensemble


@torch.no_grad()
def share_backbone(model: SiameseForCausalLM, other: SiameseForCausalLM) -> int:
    """Share equal backbone weights of ``model`` with ``other``; return the number of values saved."""
    parameters = {_base_name(name): value for name, value in model.backbone.named_parameters()}
    saved = 0
    for name, value in other.backbone.named_parameters():
        # Not if they differ: some methods train the backbone's own weights, such as biases.
        shared = parameters.get(_base_name(name))
        if shared is not None and not value.requires_grad and torch.equal(value, shared):
            # Through `.data`, the modules and ties keep their Parameter objects.
            value.data = shared.data
            saved += value.numel()
    return saved


def _base_name(name: str) -> str:
    """Return a parameter's name without the wrappers of PEFT's layers."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")
