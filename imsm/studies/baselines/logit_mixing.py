"""Two streams as one by their logits: what stands where the siamese model has its gate.

    z_o, z_t = Head(h_o), Head(h_t)          of the original and of the tuned memory
    z = mix(z_o, z_t)

Mixing memories by one constant weight and then applying the head gives the same logits wherever
the head is linear. A head that caps its logits (Gemma 2) is not, so here logits are mixed.

Legend: D width of a memory, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.distributions import Categorical

from imsm.models.siamese.model import SiameseForCausalLM

Mixed = tuple[torch.Tensor, torch.Tensor]


def mix_logits(weight: float) -> Mix:
    """The geometric mean, z = w z_o + (1 - w) z_t; outside 0..1 it is carried further.

    With -a for w it is z_t + a (z_t - z_o), as in DExperts (2105.03023) and proxy tuning
    (2401.08565).
    """
    return partial(_by_logits, weight=weight)


def _by_logits(original: torch.Tensor, tuned: torch.Tensor, *, weight: float) -> Mixed:
    return torch.lerp(tuned, original, weight), _constant(tuned, weight)


def mix_probabilities(weight: float) -> Mix:
    """The arithmetic mean, p = w p_o + (1 - w) p_t, as ln p; w in 0..1."""
    return partial(_by_probabilities, weight=weight)


def _by_probabilities(original: torch.Tensor, tuned: torch.Tensor, *, weight: float) -> Mixed:
    shares = [math.log(each) if each > 0 else -math.inf for each in (weight, 1 - weight)]
    parts = [logits.log_softmax(dim=-1) + share for logits, share in zip((original, tuned), shares, strict=True)]
    return torch.logaddexp(*parts), _constant(tuned, weight)


def mix_by_entropy(original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
    """Each token from the stream whose p has the lower entropy; the tuned one's where equal."""
    surer = Categorical(logits=original).entropy() < Categorical(logits=tuned).entropy()
    return _either(original, tuned, surer)


def mix_by_confidence(original: torch.Tensor, tuned: torch.Tensor) -> Mixed:
    """Each token from the stream whose likeliest token is likelier; the tuned one's where equal."""
    tops = [logits.log_softmax(dim=-1).amax(dim=-1) for logits in (original, tuned)]
    return _either(original, tuned, tops[0] > tops[1])


def _either(original: torch.Tensor, tuned: torch.Tensor, of_original: torch.Tensor) -> Mixed:
    return torch.where(of_original[..., None], original, tuned), of_original.float()


def _constant(logits: torch.Tensor, weight: float) -> torch.Tensor:
    return torch.full(logits.shape[:-1], weight, device=logits.device)


Model = TypeVar("Model", bound=SiameseForCausalLM)
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From the logits z_o and z_t, each (..., V) in float32: the mixed ones (..., V), and how much of
them is the original's (...)."""


class LogitMixer(nn.Module):
    """In the place of a gate; it reads logits, never the query.

    Args:
        mix: how the two streams' logits become one.
    """

    reads_query = False

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, original: torch.Tensor, tuned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z_o and z_t, each (..., V), to the mixed logits and the original's share (...)."""
        return self.mix(original.float(), tuned.float())


class LogitMixingModel(SiameseForCausalLM):
    """A siamese model whose interwoven stream mixes logits; `generate()` and the rest as ever."""

    def _mix(
        self,
        original: torch.Tensor,
        tuned: torch.Tensor,
        query_original: torch.Tensor | None,
        query_tuned: torch.Tensor | None,
        query_part: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, share = self._gate(self.head(original), self.head(tuned))
        return logits, share


def build_mixing_model(model: SiameseForCausalLM, mix: Mix) -> LogitMixingModel:
    """A model that answers with the mix of the original's and the tuned stream's logits.

    Args:
        model: has an adapter; its weights are shared, and it stays what it is.
        mix: see `Mix`.
    """
    made = derive_model(model, LogitMixingModel, stream="interwoven", gate=LogitMixer(mix))
    made.streams.copy_capabilities(model.streams)
    return made


def derive_model(model: SiameseForCausalLM, kind: type[Model], *, stream: str, gate: nn.Module | None) -> Model:
    """Another siamese model on the weights of ``model``, which stays what it is.

    Args:
        model: whose backbone and adapter are shared.
        kind: the class of the other.
        stream: that answers.
        gate: of the other.
    """
    config = copy.copy(model.config)
    config.stream = stream
    made = kind(config, model.adapted, gate)
    made.generation_config = model.generation_config
    return made.eval()
