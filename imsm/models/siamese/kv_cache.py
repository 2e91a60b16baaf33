"""KV caches of both streams, with the query states so far.

A decoder's own cache can hold more than the tokens: rows of both streams (of 2B rows the first B
are the original stream's, the last B the tuned one's), or virtual tokens before the text.
`generate()` counts sequences and tokens, so these caches wrap the decoder's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, DynamicCache, PretrainedConfig

from imsm.models.siamese.query_pooling import QueryState


class PrefixedCache(Cache):
    """A view of all layers of one or more decoder caches, with lengths counted in tokens.

    Args:
        decoder_caches: the caches passed to the decoder, in the order of its passes.
        num_virtual: number of virtual tokens that the first of them holds once it is filled.
    """

    def __init__(self, decoder_caches: Sequence[Cache], *, num_virtual: int = 0) -> None:
        super().__init__(layers=[layer for cache in decoder_caches for layer in cache.layers])
        self.decoder_caches = tuple(decoder_caches)
        self.num_virtual = num_virtual

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens, virtual tokens excluded."""
        return max(0, super().get_seq_length(layer_idx) - self.num_virtual)


class DualStreamCache(PrefixedCache):
    """Keys and values of both streams.

    Args:
        config: the backbone's text configuration, which determines the kinds of layers.
        query_mask: 1 on query positions, (B, T_query); None: the first chunk is the query and
            everything after it the answer.
        batch_both: one cache for batches of 2B rows, or one cache per stream.

    Attributes:
        queries: query states of the original and the tuned stream, or None.
        frozen_query: gate inputs of a complete query, (B, 1, ...) each, reused for its answer.
    """

    def __init__(
        self, *, config: PretrainedConfig, query_mask: torch.Tensor | None = None, batch_both: bool = True
    ) -> None:
        super().__init__([DynamicCache(config=config) for _ in range(1 if batch_both else 2)])
        self.batch_both = batch_both
        self.query_mask = query_mask
        self.queries: tuple[QueryState, QueryState] | None = None
        self.frozen_query: tuple[torch.Tensor | None, ...] | None = None

    @property
    def query_complete(self) -> bool:
        """Whether the next positions are all after the query."""
        return self.query_mask is not None and self.get_seq_length() >= self.query_mask.shape[1]

    def next_query_mask(self, query_mask: torch.Tensor | None, *, tokens: torch.Tensor) -> torch.Tensor:
        """Return the query positions (B, T) of the next chunk, as 0 and 1.

        ``query_mask`` (B, T_query) counts from the start of the sequence.

        Raises:
            ValueError: the mask contradicts the one used for the cached positions.
        """
        start, length = self.get_seq_length(), tokens.shape[1]
        if query_mask is not None and query_mask is not self.query_mask:
            if start and not self._agrees(query_mask, start):
                raise ValueError(
                    "query_mask: differs from the mask of the cached positions; start with an empty cache "
                    "(new_cache())"
                )
            self.query_mask, self.frozen_query = query_mask, None
        if self.query_mask is None:
            self.query_mask = torch.ones(tokens.shape[:2], device=tokens.device)
        chunk = self.query_mask[:, start : start + length].to(tokens.device, torch.float32)
        return functional.pad(chunk, (0, length - chunk.shape[1]))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the sequences; ``beam_idx`` (B,) indexes sequences."""
        super().reorder_cache(self._rows(beam_idx))  # type: ignore[arg-type]
        self._select_queries(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given sequences; ``indices`` (B',) indexes sequences."""
        super().batch_select_indices(self._rows(indices))
        self._select_queries(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        # interleaved, so the two halves of a dual batch stay halves
        super().batch_repeat_interleave(repeats)
        if self.query_mask is not None:
            rows = torch.arange(len(self.query_mask)).repeat_interleave(repeats)
            self._select_queries(rows)

    def merge_queries(self, caches: Sequence[DualStreamCache]) -> None:
        """Take over the query masks and states of several caches, row after row."""
        masks = [cache.query_mask for cache in caches if cache.query_mask is not None]
        width = max((mask.shape[1] for mask in masks), default=0)
        if masks:
            self.query_mask = torch.cat([functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        queries = [cache.queries for cache in caches if cache.queries is not None]
        if queries:
            original, tuned = (QueryState.concat(states) for states in zip(*queries, strict=True))
            self.queries = (original, tuned)
        self.frozen_query = None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove ``-tokens_to_remove`` positions from the end, as transformers does.

        Raises:
            ValueError: the query would be cropped; the hidden states it was pooled from are not kept.
        """
        if tokens_to_remove and self.queries is not None and self.query_mask is not None:
            in_query = self.query_mask.bool().any(dim=0).nonzero()
            end = int(in_query.max()) + 1 if len(in_query) else 0
            if self.get_seq_length() - abs(tokens_to_remove) < end:
                raise ValueError("crop: a DualStreamCache cannot be cropped inside its query")
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Clear the cache, the query and its mask."""
        super().reset()
        self.query_mask = self.queries = self.frozen_query = None

    def _agrees(self, query_mask: torch.Tensor, start: int) -> bool:
        """Whether ``query_mask`` equals the cache's mask on the first ``start`` positions."""
        if self.query_mask is None:
            return False
        given, used = (
            functional.pad(mask[:, :start].bool(), (0, max(0, start - mask.shape[1])))
            for mask in (query_mask, self.query_mask.to(query_mask.device))
        )
        return torch.equal(given, used)

    def _rows(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the decoder cache's rows of ``sequences``: both halves of a dual batch."""
        num_rows = next((len(state) for layer in self.layers for state in _states(layer)), 0)
        if not (num_rows and self.batch_both):
            return sequences
        return torch.cat([sequences, sequences + num_rows // 2])

    def _select_queries(self, sequences: torch.Tensor) -> None:
        self.frozen_query = None
        if self.query_mask is not None:
            self.query_mask = self.query_mask.index_select(0, sequences.to(self.query_mask.device))
        if self.queries is not None:
            original, tuned = self.queries
            rows = sequences.to(original.count.device)
            self.queries = (original.select(rows), tuned.select(rows))


def concat_caches(caches: Sequence[Cache]) -> Cache:
    """Concatenate the sequences of several caches, padding shorter ones on the left.

    The layers hold keys and values by position, without virtual tokens. The caches are consumed.
    """
    first = caches[0]
    width = max(cache.get_seq_length() for cache in caches)
    halves = 2 if isinstance(first, DualStreamCache) and first.batch_both else 1
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("keys", "values"):
            tensors = [getattr(layer, name) for layer in layers]
            if all(tensor is not None and tensor.numel() for tensor in tensors):
                # freed first, so that at most one layer is in memory twice
                for layer in layers:
                    setattr(layer, name, None)
                setattr(layers[0], name, _concat_padded(tensors, width=width, halves=halves))
        if hasattr(layers[0], "cumulative_length"):
            layers[0].cumulative_length = width
    if isinstance(first, DualStreamCache):
        first.merge_queries([cache for cache in caches if isinstance(cache, DualStreamCache)])
    return first


def _concat_padded(tensors: list[torch.Tensor], *, width: int, halves: int) -> torch.Tensor:
    """Concatenate keys or values (rows, H, T, E), padded on the left to ``width`` positions."""
    padded = [functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0)) for tensor in tensors]
    # all original rows before all tuned rows, as `_rows` expects
    by_half = zip(*(tensor.chunk(halves) for tensor in padded), strict=True)
    return torch.cat([rows for half in by_half for rows in half])


def _states(layer: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors with a row per sequence: keys, or states of linear attention."""
    states = [getattr(layer, "keys", None)]
    for name in ("conv_states", "recurrent_states"):
        states += getattr(layer, name, {}).values()
    yield from (state for state in states if state is not None and state.numel())
