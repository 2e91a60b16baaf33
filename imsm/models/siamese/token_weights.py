"""Weights of the target's tokens in the training loss: sum over the N label positions of w_i * (-ln p_i(y_i)).

    dft      w = p(y)                                             Wu et al., arXiv 2508.05629, eq. 9
    eaft     w = H_20 / 3                                         Diao et al., arXiv 2601.02151
    infosft  w = p(y) * max(0, 1 - logit(p(y)) / logit(0.93))     Sabbaghi et al., arXiv 2605.14967

H_20 is the entropy, in nats, of the 20 most likely tokens after renormalization (at most ln 20 = 2.996; the authors
divide by 3). Weights carry no gradient. They depend on their own position only, so the loss does not depend on how a
batch is split. DFT plus KL to the original model is ASFT (arXiv 2509.23753).

Shapes: N label positions, V vocabulary size.
"""

import math
from collections.abc import Callable

import torch

TokenWeight = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (N, V) and cross-entropies (N,), both float32, to weights (N,)."""
_TOP_K = 20
_MAX_ENTROPY = 3.0
_CALIBRATION = 0.93
"""Probability from which InfoSFT's weight is 0; the authors' value for all models."""


def dft(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Return the probability of the target token, so that unlikely tokens count less."""
    return torch.exp(-losses)


def eaft(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Return the normalized entropy, so that tokens contradicting a confident prediction count less."""
    log_probs = logits.topk(min(_TOP_K, logits.shape[-1]), dim=-1).values.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1) / _MAX_ENTROPY


def infosft(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Return a weight that is largest for tokens of medium probability, 0 from `_CALIBRATION` on."""
    probability = torch.exp(-losses)
    # -losses instead of the logarithm of an underflowed probability
    logit = -losses - torch.log1p(-probability)
    return probability * torch.relu(1 - logit / math.log(_CALIBRATION / (1 - _CALIBRATION)))


TOKEN_WEIGHTS: dict[str, TokenWeight] = {"dft": dft, "eaft": eaft, "infosft": infosft}


def weighted_sum(weight: TokenWeight, logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Return the sum of weighted cross-entropies; logits (N, V), losses (N,)."""
    with torch.no_grad():
        weights = weight(logits, losses)
    return (weights * losses).sum()
