"""Mix the logits of both streams instead of their hidden states.

    z_o, z_t = lm_head(h_o), lm_head(h_t)    original and tuned
    z = mix(z_o, z_t)

With a linear head, mixing hidden states by a constant weight gives the same logits. A head that caps its
logits (Gemma 2) is not linear, so the logits are mixed here. V is the vocabulary size.
"""

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.distributions import Categorical

from imsm.models.siamese.model import SiameseForCausalLM

Model = TypeVar("Model", bound=SiameseForCausalLM)
Mixed = tuple[torch.Tensor, torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor], Mixed]
"""From logits z_o and z_t, each (..., V) in float32, to mixed logits (..., V) and the original's weight (...)."""


def mix_logits(weight: float) -> Mix:
    """Return the geometric mean z = w z_o + (1 - w) z_t; w outside 0..1 extrapolates.

    With w = -a it is z_t + a (z_t - z_o), as in DExperts (2105.03023) and proxy tuning (2401.08565).
    """
    # lerp is exact at weights 0 and 1.
    return lambda original, tuned: (torch.lerp(tuned, original, weight), _constant(tuned, weight))


def mix_probabilities(weight: float) -> Mix:
    """Return the arithmetic mean p = w p_o + (1 - w) p_t, as ln p; w in 0..1."""
    # As logarithms, because probabilities in float32 underflow; math.log rejects 0.
    log_weights = [math.log(each) if each > 0 else -math.inf for each in (weight, 1 - weight)]

    def mix(original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
        parts = [logits.log_softmax(dim=-1) + w for logits, w in zip((original, tuned), log_weights, strict=True)]
        return torch.logaddexp(*parts), _constant(tuned, weight)

    return mix


def mix_by_entropy(original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
    """Take each token from the stream with the lower entropy; from the tuned one if equal."""
    return _choose(original, tuned, Categorical(logits=original).entropy() < Categorical(logits=tuned).entropy())


def mix_by_confidence(original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
    """Take each token from the stream with the higher maximum p; from the tuned one if equal."""
    maxima = [logits.log_softmax(dim=-1).amax(dim=-1) for logits in (original, tuned)]
    return _choose(original, tuned, maxima[0] > maxima[1])


def _choose(original: torch.Tensor, tuned: torch.Tensor, from_original: torch.Tensor) -> Mixed:
    return torch.where(from_original[..., None], original, tuned), from_original.float()


def _constant(logits: torch.Tensor, weight: float) -> torch.Tensor:
    return torch.full(logits.shape[:-1], weight, device=logits.device)


class LogitMixer(nn.Module):
    """Replaces the gate; mixes logits and ignores the query."""

    reads_query = False

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
        """Mix z_o and z_t, each (..., V); return mixed logits and the original's weight (...)."""
        # In float32: bfloat16 would make entropies and maxima equal that are not.
        return self.mix(original.float(), tuned.float())


class LogitMixingModel(SiameseForCausalLM):
    """A siamese model whose interwoven stream mixes logits instead of hidden states."""

    def _mix(
        self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, weight = self._gate(self.head(original), self.head(tuned))
        return logits, weight

    def _gate_weights(
        self, original: torch.Tensor, tuned: torch.Tensor, *queries: torch.Tensor | None
    ) -> torch.Tensor:
        return self._mix(original, tuned)[1][..., None]


def build_mixing_model(model: SiameseForCausalLM, mix: Mix) -> LogitMixingModel:
    """Build a model that mixes the logits of both streams of ``model``, which is unchanged."""
    mixing = derive_model(model, LogitMixingModel, stream="interwoven", gate=LogitMixer(mix))
    mixing.streams.copy_capabilities(model.streams)
    return mixing


def derive_model(model: SiameseForCausalLM, kind: type[Model], *, stream: str, gate: nn.Module | None) -> Model:
    """Build another siamese model of class ``kind`` on the weights of ``model``, which is unchanged."""
    # A copy, because the stream is part of the configuration.
    config = copy.copy(model.config)
    config.stream = stream
    # a baseline runs both streams at every position
    config.skip_threshold = None
    derived = kind(config, model.adapted, gate)
    derived.generation_config = model.generation_config
    return derived.eval()
