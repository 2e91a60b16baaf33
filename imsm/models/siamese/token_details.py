"""What each stream predicts at a generated token, and how far they differ.

Shapes: N positions, V vocabulary size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

WINNERS = ("neither", "tuned", "original", "both")
"""The streams whose most likely token was generated: 2 * original + tuned is the index."""
MIN_LOGPROB = -9999.0
"""Reported in place of -inf, which JSON does not have, for tokens that a model excludes; OpenAI's API has the same."""
Candidates = tuple[tuple[int, float], ...]
"""Token ids with their ln p, most likely first."""


class HasHead(Protocol):
    """A model with the backbone's head, e.g. `SiameseForCausalLM`."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) of hidden states (..., D)."""


@dataclass(frozen=True, kw_only=True)
class TokenDetails:
    """One generated token, as both streams see its position.

    Attributes:
        token: Its id.
        winner: The streams whose most likely token it was: "original", "tuned", "both" or "neither".
        kl: KL(p_o || p_t) in nats.
        gate: Mean over D of the original's weight; None without a gate.
        gate_std: Standard deviation over D; None without a gate, 0 for a gate per token.
        original: The original's most likely tokens.
        tuned: The tuned model's most likely tokens.
    """

    token: int
    winner: str
    kl: float
    gate: float | None
    gate_std: float | None
    original: Candidates
    tuned: Candidates


@torch.inference_mode()
def token_details(
    model: HasHead,
    tokens: Sequence[int],
    *,
    original: torch.Tensor,
    tuned: torch.Tensor,
    gate: torch.Tensor | None,
    top: int = 5,
) -> list[TokenDetails]:
    """Return the details of N tokens, from the states that predict them.

    ``original`` and ``tuned`` are h_o and h_t, (N, D); ``gate`` are the original's weights, (N, D) or (N, 1). ``top``
    is the number of candidates of each stream.
    """
    chosen = torch.tensor(list(tokens), device=original.device)
    # float32: a log-softmax over V entries is too coarse in half precision
    log_original, log_tuned = (
        model.head(hidden).float().log_softmax(dim=-1).clamp(min=MIN_LOGPROB) for hidden in (original, tuned)
    )
    winners = 2 * (log_original.argmax(dim=-1) == chosen) + (log_tuned.argmax(dim=-1) == chosen).long()
    divergence = (log_original.exp() * (log_original - log_tuned)).sum(dim=-1).clamp(min=0)
    means = [None] * len(chosen) if gate is None else gate.float().mean(dim=-1).tolist()
    spreads = [None] * len(chosen) if gate is None else gate.float().std(dim=-1, correction=0).tolist()
    columns = (
        chosen.tolist(),
        winners.tolist(),
        divergence.tolist(),
        means,
        spreads,
        _candidates(log_original, top),
        _candidates(log_tuned, top),
    )
    return [
        TokenDetails(token=token, winner=WINNERS[winner], kl=kl, gate=mean, gate_std=std, original=first, tuned=second)
        for token, winner, kl, mean, std, first, second in zip(*columns, strict=True)
    ]


def _candidates(log_probabilities: torch.Tensor, top: int) -> list[Candidates]:
    values, ids = log_probabilities.topk(min(top, log_probabilities.shape[-1]), dim=-1)
    return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
