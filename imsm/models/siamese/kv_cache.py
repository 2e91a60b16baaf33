"""The key-value caches of a siamese model: the streams' keys and values, the query memories so far.

A body's own cache may hold more than the tokens: rows of both streams (of 2B rows the first B
belong to the original stream, the last B to the tuned one), or virtual positions before the
tokens. `generate()` counts sequences and tokens, so these caches stand around the bodies' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, DynamicCache, PretrainedConfig

from imsm.models.siamese.query_pooling import QueryState


class PrefixedCache(Cache):
    """A cache around those that bodies fill: all their layers, counted in tokens.

    Args:
        bodies: the caches that are handed to a body, in the order of its passes.
        virtual: positions that the first of them holds before the tokens, once it is filled.
    """

    def __init__(self, bodies: Sequence[Cache], *, virtual: int = 0) -> None:
        super().__init__(layers=[layer for body in bodies for layer in body.layers])
        self.bodies = tuple(bodies)
        self.virtual = virtual

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were fed, virtual ones not counted."""
        return max(0, super().get_seq_length(layer_idx) - self.virtual)


class DualStreamCache(PrefixedCache):
    """The keys and values of both streams.

    Args:
        config: the backbone's (text) configuration: it names the kinds of its layers.
        query_mask: 1 where a position belongs to the query, (B, T_query); None: the first piece
            that is fed is the query, whatever follows is the answer.
        doubled: one cache over doubled rows (one pass), or a cache for each stream (two passes).
    """

    def __init__(
        self, *, config: PretrainedConfig, query_mask: torch.Tensor | None = None, doubled: bool = True
    ) -> None:
        super().__init__([DynamicCache(config=config) for _ in range(1 if doubled else 2)])
        self.doubled = doubled
        self.query_mask = query_mask
        self.queries: tuple[QueryState, QueryState] | None = None  # original, tuned
        self.settled: tuple[torch.Tensor | None, ...] | None = None
        """What the model made of a query that is over, (B, 1, ...) each; kept for its answer."""

    @property
    def query_is_over(self) -> bool:
        """Whether no position that comes now can be the query's."""
        return self.query_mask is not None and self.get_seq_length() >= self.query_mask.shape[1]

    def query_piece(self, query_mask: torch.Tensor | None, *, fed: torch.Tensor) -> torch.Tensor:
        """Which positions of the piece that comes now are the query's, (B, T) of 0 and 1.

        Args:
            query_mask: the query's mask from the sequence's start, if it is given (again) with
                this piece, (B, T_query); positions after it are the answer's.
            fed: the piece, (B, T) or (B, T, D).

        Raises:
            ValueError: the mask says something else of what was fed already.
        """
        start, length = self.get_seq_length(), fed.shape[1]
        if query_mask is not None and query_mask is not self.query_mask:
            if start and not self._agrees(query_mask, start):
                raise ValueError(
                    "query_mask: this cache took other positions for the query before; start with "
                    "an empty cache (new_cache())"
                )
            self.query_mask, self.settled = query_mask, None
        if self.query_mask is None:
            self.query_mask = torch.ones(fed.shape[:2], device=fed.device)
        piece = self.query_mask[:, start : start + length].to(fed.device, torch.float32)
        return functional.pad(piece, (0, length - piece.shape[1]))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder sequences; ``beam_idx`` (B,) counts sequences."""
        super().reorder_cache(self._rows(beam_idx))  # type: ignore[arg-type]
        self._select_queries(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given sequences; ``indices`` (B',) counts sequences."""
        super().batch_select_indices(self._rows(indices))
        self._select_queries(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence: rows repeat in place, so the halves stay halves."""
        super().batch_repeat_interleave(repeats)
        if self.query_mask is not None:
            rows = torch.arange(len(self.query_mask)).repeat_interleave(repeats)
            self._select_queries(rows)

    def take_queries(self, caches: Sequence[DualStreamCache]) -> None:
        """What is known of the queries of several caches, this one among them, row after row."""
        masks = [cache.query_mask for cache in caches if cache.query_mask is not None]
        width = max((mask.shape[1] for mask in masks), default=0)
        if masks:
            parts = [functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks]
            self.query_mask = torch.cat(parts)
        known = [cache.queries for cache in caches if cache.queries is not None]
        if known:
            original, tuned = (QueryState.joined(states) for states in zip(*known, strict=True))
            self.queries = (original, tuned)
        self.settled = None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove ``-tokens_to_remove`` positions from the end, as transformers does.

        Raises:
            ValueError: the query would be cut: what it was pooled from is not kept.
        """
        if tokens_to_remove and self.queries is not None and self.query_mask is not None:
            in_query = self.query_mask.bool().any(dim=0).nonzero()
            end = int(in_query.max()) + 1 if len(in_query) else 0
            if self.get_seq_length() - abs(tokens_to_remove) < end:
                raise ValueError("crop: a siamese cache cannot be cut inside its query")
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget everything, the query and its mask too."""
        super().reset()
        self.query_mask = self.queries = self.settled = None

    def _agrees(self, query_mask: torch.Tensor, start: int) -> bool:
        """Whether ``query_mask`` is what this cache took for the query of its first positions."""
        if self.query_mask is None:
            return False
        now, before = (
            functional.pad(mask[:, :start].bool(), (0, max(0, start - mask.shape[1])))
            for mask in (query_mask, self.query_mask.to(query_mask.device))
        )
        return torch.equal(now, before)

    def _rows(self, sequences: torch.Tensor) -> torch.Tensor:
        rows = next((len(state) for layer in self.layers for state in _states(layer)), 0)
        if not (rows and self.doubled):
            return sequences
        return torch.cat([sequences, sequences + rows // 2])

    def _select_queries(self, sequences: torch.Tensor) -> None:
        self.settled = None
        if self.query_mask is not None:
            self.query_mask = self.query_mask.index_select(0, sequences.to(self.query_mask.device))
        if self.queries is not None:
            original, tuned = self.queries
            rows = sequences.to(original.count.device)
            self.queries = (original.select(rows), tuned.select(rows))


def joined(caches: Sequence[Cache]) -> Cache:
    """One cache of the sequences of all, in their order; shorter ones are padded on the left.

    Args:
        caches: of a kind and with as many layers, each of keys and values by place that hold all
            that was fed, no virtual positions; they are used up.
    """
    first = caches[0]
    width = max(cache.get_seq_length() for cache in caches)
    halves = 2 if isinstance(first, DualStreamCache) and first.doubled else 1
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("keys", "values"):
            held = [getattr(layer, name) for layer in layers]
            if all(tensor is not None and tensor.numel() for tensor in held):
                for layer in layers:
                    setattr(layer, name, None)  # no more than one layer is there twice
                setattr(layers[0], name, _side_by_side(held, width=width, halves=halves))
        if hasattr(layers[0], "cumulative_length"):
            layers[0].cumulative_length = width
    if isinstance(first, DualStreamCache):
        first.take_queries([cache for cache in caches if isinstance(cache, DualStreamCache)])
    return first


def _side_by_side(held: list[torch.Tensor], *, width: int, halves: int) -> torch.Tensor:
    """Keys or values (rows, H, T, E) of several caches as those of one, ``width`` positions."""
    gaps = [width - tensor.shape[-2] for tensor in held]
    parts = [functional.pad(each, (0, 0, gap, 0)) for each, gap in zip(held, gaps, strict=True)]
    by_half = zip(*(part.chunk(halves) for part in parts), strict=True)
    return torch.cat([rows for half in by_half for rows in half])


def _states(layer: Any) -> Iterator[torch.Tensor]:
    """What a body's layer keeps, a row per sequence: keys, or the states of linear attention."""
    held = [getattr(layer, "keys", None)]
    for name in ("conv_states", "recurrent_states"):
        held += getattr(layer, name, {}).values()
    yield from (state for state in held if state is not None and state.numel())
