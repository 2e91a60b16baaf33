"""Query states: hidden states pooled over the query positions (paper, eq. 2 and 3).

Pooling is causal: a position inside the query sees the query up to itself, later positions see all of it. So no logit
depends on a later token, and a query processed in chunks gives the same result as in one pass.

Shapes: B batch, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass
class QueryState:
    """The pooled part of the query so far; one row per sequence.

    Args:
        pooled: running sum, maximum or last hidden state, (B, D) float32.
        count: number of query positions, (B, 1).
    """

    pooled: torch.Tensor
    count: torch.Tensor

    def select(self, rows: torch.Tensor) -> QueryState:
        """Return the state of the given rows, in their order."""
        return QueryState(self.pooled.index_select(0, rows), self.count.index_select(0, rows))

    @staticmethod
    def concat(states: Sequence[QueryState]) -> QueryState:
        """Concatenate the rows of several states."""
        return QueryState(torch.cat([s.pooled for s in states]), torch.cat([s.count for s in states]))


@dataclass(frozen=True)
class Pooling:
    """One way to pool.

    Args:
        empty: value before the first query token.
        running: pooled value at each position, (B, T, D).
        finish: turns running values and counts into query states.
        full: query state of a finished query, (B, D).
    """

    empty: float
    running: Callable[[torch.Tensor, torch.Tensor, QueryState], torch.Tensor]
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    full: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _running_sum(hidden: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    # masked_fill instead of a product: 0 * inf in a padding position would be NaN
    return before.pooled[:, None] + hidden.masked_fill(mask == 0, 0).cumsum(dim=1)


def _running_max(hidden: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    maximum = hidden.masked_fill(mask == 0, -torch.inf).cummax(dim=1).values
    return torch.maximum(before.pooled[:, None], maximum)


def _running_last(hidden: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
    # 0 means no query position in this chunk yet; it selects the state before the chunk
    newest = (steps * mask).cummax(dim=1).values.long()
    with_before = torch.cat([before.pooled[:, None], hidden], dim=1)
    return with_before.gather(1, newest.expand(-1, -1, hidden.shape[-1]))


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask == 0, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # argmax returns the first maximum, so the flipped mask gives the last query position, (B, 1)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden.gather(1, last[..., None].expand(-1, 1, hidden.shape[-1]))[:, 0]


POOLINGS = {
    "mean": Pooling(0.0, _running_sum, lambda pooled, count: pooled / count.clamp(min=1), _mean),
    "max": Pooling(-torch.inf, _running_max, lambda pooled, count: pooled, _max),
    "last": Pooling(0.0, _running_last, lambda pooled, count: pooled, _last),
}


def pool_causal(
    hidden_states: torch.Tensor, mask: torch.Tensor, *, pooling: str, before: QueryState | None = None
) -> tuple[torch.Tensor, QueryState]:
    """Return the query states (B, T, D) in float32, and the state after this chunk.

    ``hidden_states`` (B, T, D) are one stream's; ``mask`` (B, T) is 1 on query positions;
    ``before`` is the state before this chunk, None for the start of a sequence.
    """
    method = POOLINGS[pooling]
    if before is None:
        pooled = hidden_states.new_full(hidden_states[:, 0].shape, method.empty, dtype=torch.float32)
        before = QueryState(pooled, hidden_states.new_zeros((len(hidden_states), 1), dtype=torch.float32))
    weights = mask[..., None].to(torch.float32)
    # float32: running sums over thousands of positions lose digits in half precision
    pooled = method.running(hidden_states.to(torch.float32), weights, before)
    count = before.count[:, None] + weights.cumsum(dim=1)
    # zeros before the first query token, where max pooling would give -inf
    queries = torch.where(count > 0, method.finish(pooled, count), torch.zeros_like(pooled))
    return queries, QueryState(pooled[:, -1], count[:, -1])


def pool(hidden_states: torch.Tensor, mask: torch.Tensor, *, pooling: str) -> torch.Tensor:
    """Return the query states (B, D) of complete queries, in float32.

    Equal to the last position of `pool_causal`, without computing a value per position.
    """
    weights = mask[..., None].to(torch.float32)
    return POOLINGS[pooling].full(hidden_states.to(torch.float32), weights)
