"""Choose the next token of one answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: Divisor of the logits; 0: the most likely token.
        top_p: Sample from the most likely tokens whose probabilities sum to at least this, in (0, 1].
        seed: Seed of the answer's own random numbers; None: a random one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def generator(self) -> torch.Generator:
        """Return the random numbers of one answer, which do not depend on other answers in the batch."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def choose_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return the next token for logits (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    # on the CPU and in float64, so that equal seeds give equal tokens in batches of any size
    logits = logits.double().cpu()
    # minus the maximum, so that a tiny temperature gives no infinity
    probabilities = ((logits - logits.max()) / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, ids = probabilities.sort(descending=True)
        # a token is kept if those before it do not reach top_p
        kept = ordered.cumsum(dim=-1) - ordered < sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(0, ids[kept], ordered[kept])
    return int(torch.multinomial(probabilities, 1, generator=generator))
