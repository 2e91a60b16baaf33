"""Continue a query with one stream if the gate is decided (`gate.skip`).

    g = mean over D of the gate at the position that predicts the first answer token
    tuned stream if g < threshold, original stream if g > 1 - threshold, otherwise both, interwoven

This position is the first one that has read the complete query, the first one whose gate the answer uses, and, with
`gate.loss=route`, one that the gate was trained at. The first answer token already comes from the chosen stream.

Shapes: B rows, K positions of a pass, D hidden size. A choice is an index into ``CHOICES``.
"""

from collections.abc import Sequence

import torch

CHOICES = ("both", "original", "tuned")
"""The streams that a query continues with."""
BOTH, ORIGINAL, TUNED = range(len(CHOICES))


def check_threshold(threshold: float | None, *, key: str = "skip_threshold") -> float | None:
    """Return the threshold; raise ValueError, naming ``key``, unless it is None or inside (0, 0.5)."""
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is None or (is_number and 0 < threshold < 0.5):
        return threshold
    raise ValueError(f"{key}={threshold!r}: must be above 0 and below 0.5, or None to run both streams; choose 0.1")


def choose_streams(gate: torch.Tensor, *, threshold: float) -> torch.Tensor:
    """Return the choice of each row from its gate (B,), mean over D."""
    choices = torch.full_like(gate, BOTH, dtype=torch.long)
    return choices.masked_fill(gate < threshold, TUNED).masked_fill(gate > 1 - threshold, ORIGINAL)


def follow_choices(
    choices: torch.Tensor, hidden: torch.Tensor, gate: torch.Tensor, *, original: torch.Tensor, tuned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the mix by the chosen stream, and the gate by its weight of the original, 0 or 1.

    ``choices`` and ``gate`` are (..., ), the hidden states (..., D).
    """
    for choice, stream, weight in ((ORIGINAL, original, 1.0), (TUNED, tuned, 0.0)):
        chosen = choices == choice
        hidden = torch.where(chosen[..., None], stream, hidden)
        gate = gate.masked_fill(chosen, weight)
    return hidden, gate


def count_choices(choices: Sequence[str]) -> dict[str, int] | None:
    """Return how often each stream was chosen, in the order of a report; None without choices."""
    return {name: choices.count(name) for name in ("tuned", "original", "both")} if choices else None
