"""Query memories: a stream's memories pooled over the query's positions (paper, eq. 2 and 3).

Pooling runs along the sequence: at a position inside the query only the query up to there counts,
from the query's last token on all of it. So no logit depends on a later token, and a query that
comes in chunks gives what it gives in one piece.

Legend: B batch, T positions, D width of a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass
class QueryState:
    """What is known of the query so far; one row per sequence.

    ``pooled`` (B, D) float32: the running sum, maximum or last memory. ``count`` (B, 1): positions.
    """

    pooled: torch.Tensor
    count: torch.Tensor

    def select(self, rows: torch.Tensor) -> QueryState:
        """The state of the given rows, in their order (beam search, batch selection)."""
        return QueryState(self.pooled.index_select(0, rows), self.count.index_select(0, rows))

    @staticmethod
    def joined(states: Sequence[QueryState]) -> QueryState:
        """The states of several batches as those of one, row after row."""
        pooled, count = ([getattr(s, name) for s in states] for name in ("pooled", "count"))
        return QueryState(torch.cat(pooled), torch.cat(count))


@dataclass(frozen=True)
class Pooling:
    """One way to pool: along the sequence (``running``, then ``finish``) or at once (``whole``).

    ``empty`` is the value before the first query token.
    """

    empty: float
    running: Callable[[torch.Tensor, torch.Tensor, QueryState], torch.Tensor]
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    whole: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _running_sum(memory: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    return before.pooled[:, None] + memory.masked_fill(mask == 0, 0).cumsum(dim=1)


def _running_maximum(memory: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    seen = memory.masked_fill(mask == 0, -torch.inf).cummax(dim=1).values
    return torch.maximum(before.pooled[:, None], seen)


def _running_last(memory: torch.Tensor, mask: torch.Tensor, before: QueryState) -> torch.Tensor:
    steps = torch.arange(1, memory.shape[1] + 1, device=memory.device)[None, :, None]
    newest = (steps * mask).cummax(dim=1).values.long()  # 0: none yet in this piece
    with_before = torch.cat([before.pooled[:, None], memory], dim=1)
    return with_before.gather(1, newest.expand(-1, -1, memory.shape[-1]))


def _whole_mean(memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return memory.masked_fill(mask == 0, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _whole_maximum(memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return memory.masked_fill(mask == 0, -torch.inf).amax(dim=1)


def _whole_last(memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)  # (B, 1)
    return memory.gather(1, last[..., None].expand(-1, 1, memory.shape[-1]))[:, 0]


POOLINGS = {
    "mean": Pooling(0.0, _running_sum, lambda pooled, count: pooled / count.clamp(min=1), _whole_mean),
    "max": Pooling(-torch.inf, _running_maximum, lambda pooled, count: pooled, _whole_maximum),
    "last": Pooling(0.0, _running_last, lambda pooled, count: pooled, _whole_last),
}


def empty_state(memory: torch.Tensor, *, pooling: str) -> QueryState:
    """The state before the first token, for memories of shape (B, T, D)."""
    batch, _, width = memory.shape
    pooled = memory.new_full((batch, width), POOLINGS[pooling].empty, dtype=torch.float32)
    return QueryState(pooled, memory.new_zeros((batch, 1), dtype=torch.float32))


def pool_causal(
    memory: torch.Tensor, mask: torch.Tensor, *, pooling: str, before: QueryState
) -> tuple[torch.Tensor, QueryState]:
    """The query memory as each position may see it, and the state after the piece.

    Args:
        memory: a stream's memories, (B, T, D).
        mask: 1 where a position belongs to the query, (B, T).
        pooling: "mean" (the paper), "max" or "last".
        before: the state before this piece.

    Returns:
        Query memories (B, T, D) in float32, and the state to go on with.
    """
    method = POOLINGS[pooling]
    weights = mask[..., None].to(torch.float32)
    pooled = method.running(memory.to(torch.float32), weights, before)
    count = before.count[:, None] + weights.cumsum(dim=1)
    queries = torch.where(count > 0, method.finish(pooled, count), torch.zeros_like(pooled))
    return queries, QueryState(pooled[:, -1], count[:, -1])


def pool(memory: torch.Tensor, mask: torch.Tensor, *, pooling: str) -> torch.Tensor:
    """The query memory of a finished query: (B, D) in float32, from memories (B, T, D).

    Equal to the last row of ``running_query``, without a value per position; for positions after
    the query only.
    """
    weights = mask[..., None].to(torch.float32)
    return POOLINGS[pooling].whole(memory.to(torch.float32), weights)
