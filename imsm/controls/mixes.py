"""The ways in which two streams' logits become one; each without anything to learn.

Legend: V vocabulary; p = softmax(z); each function takes z_o and z_t, (..., V) in float32, and
gives the mixed logits (..., V) and the share of the original (...).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.distributions import Categorical

from imsm.controls.mixed import Mix

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
    parts = [
        logits.log_softmax(dim=-1) + share
        for logits, share in zip((original, tuned), shares, strict=True)
    ]
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
