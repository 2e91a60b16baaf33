"""KV caches of both streams, with the query states so far.

A decoder's own cache can hold more than the tokens: rows of both streams (of 2B rows the first B
are the original stream's, the last B the tuned one's), or virtual tokens before the text.
`generate()` counts sequences and tokens, so these caches wrap the decoder's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Cache, DynamicCache, PretrainedConfig

from imsm.models.siamese.query_pooling import QueryState
from imsm.models.siamese.skip import BOTH, CHOICES, TUNED


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


@dataclass(frozen=True)
class CachePart:
    """The sequences of a batch that continue with the same streams.

    Args:
        choice: index into `imsm.models.siamese.skip.CHOICES`.
        rows: ascending indices of the sequences, (B',).
        cache: their cache: a `DualStreamCache` for both streams, else one stream's.
    """

    choice: int
    rows: torch.Tensor
    cache: Cache


class DualStreamCache(PrefixedCache):
    """Keys and values of both streams, or, where a sequence continues with one stream, of that one.

    Args:
        config: the backbone's text configuration, which determines the kinds of layers.
        query_mask: 1 on query positions, (B, T_query); None: the first chunk is the query and
            everything after it the answer.
        batch_both: one cache for batches of 2B rows, or one cache per stream.

    Attributes:
        queries: query states of the original and the tuned stream, or None.
        frozen_query: gate inputs of a complete query, (B, 1, ...) each, reused for its answer.
        choices: streams that each sequence continues with, (B,), as indices into
            `imsm.models.siamese.skip.CHOICES`; None before the decision or without one.
        decision_gate: gate that was compared with the threshold, (B,); None without choices.
        parts: the sequences by choice; None before `split`, empty if all continue with both streams.
    """

    def __init__(
        self, *, config: PretrainedConfig, query_mask: torch.Tensor | None = None, batch_both: bool = True
    ) -> None:
        super().__init__([DynamicCache(config=config) for _ in range(1 if batch_both else 2)])
        self.batch_both = batch_both
        self.query_mask = query_mask
        self.queries: tuple[QueryState, QueryState] | None = None
        self.frozen_query: tuple[torch.Tensor | None, ...] | None = None
        self.choices: torch.Tensor | None = None
        self.decision_gate: torch.Tensor | None = None
        self.parts: list[CachePart] | None = None
        self._config = config

    @property
    def choice_names(self) -> list[str] | None:
        """The streams that each sequence continues with: "tuned", "original" or "both"; None without a decision."""
        return None if self.choices is None else [CHOICES[choice] for choice in self.choices.tolist()]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens, virtual tokens excluded."""
        return self.parts[0].cache.get_seq_length(layer_idx) if self.parts else super().get_seq_length(layer_idx)

    def decide(self, choices: torch.Tensor, gate: torch.Tensor) -> None:
        """Set the streams that each sequence continues with, (B,), and the gate that decided, (B,)."""
        self.choices, self.decision_gate, self.parts = choices, gate, None

    def split(self) -> list[CachePart]:
        """Return the parts of a decided batch; the first call drops the streams that are not continued.

        The list is empty if all sequences continue with both streams.
        """
        if self.choices is None or self.parts is not None:
            return self.parts or []
        chosen = [(choice, (self.choices == choice).nonzero()[:, 0]) for choice in range(len(CHOICES))]
        chosen = [(choice, rows) for choice, rows in chosen if len(rows)]
        if [choice for choice, _ in chosen] == [BOTH]:
            self.parts = []
            return self.parts
        # copies share the tensors, which selecting rows replaces
        memo = {id(tensor): tensor for layer in self.layers for tensor in _tensors(vars(layer).values())}
        caches = [self._copy(choice, dict(memo)) for choice, _ in chosen]
        # nothing else may hold the tensors of both streams while rows are selected
        del memo
        self.layers, self.decoder_caches = [], ()
        for (choice, rows), cache in zip(chosen, caches, strict=True):
            start = len(self.choices) if choice == TUNED and self.batch_both else 0
            cache.reorder_cache(start + rows)  # type: ignore[arg-type]
        self._set_parts([CachePart(*each, cache) for each, cache in zip(chosen, caches, strict=True)])
        self.frozen_query = None
        return self.parts or []

    def _copy(self, choice: int, memo: dict[int, Any]) -> Cache:
        """Return a copy of the cache of one stream or of both; tensors in ``memo`` are shared."""
        if choice == BOTH:
            both = copy.copy(self)
            both.decoder_caches = tuple(copy.deepcopy(cache, memo) for cache in self.decoder_caches)
            both.layers = [layer for cache in both.decoder_caches for layer in cache.layers]
            both.choices = both.decision_gate = None
            return both
        cache = self.decoder_caches[-1 if choice == TUNED else 0]
        # of prompt learning, whose tuned stream has its own cache
        num_virtual = cache.get_seq_length() - self.get_seq_length()
        return PrefixedCache([copy.deepcopy(cache, memo)], num_virtual=num_virtual)

    def _set_parts(self, parts: list[CachePart]) -> None:
        self.parts, self.layers = parts, [layer for part in parts for layer in part.cache.layers]

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
            if self.query_mask is not None and self._is_decided() and query_mask[:, self.query_mask.shape[1] :].any():
                raise ValueError(
                    "query_mask: extends a query whose stream is decided (skip_threshold); start with an empty cache "
                    "(new_cache())"
                )
            self.query_mask, self.frozen_query = query_mask, None
        if self.query_mask is None:
            self.query_mask = torch.ones(tokens.shape[:2], device=tokens.device)
        chunk = self.query_mask[:, start : start + length].to(tokens.device, torch.float32)
        return functional.pad(chunk, (0, length - chunk.shape[1]))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the sequences; ``beam_idx`` (B,) indexes sequences."""
        if self.parts:
            self._select_parts(beam_idx)
        else:
            super().reorder_cache(self._rows(beam_idx))  # type: ignore[arg-type]
        self._select_queries(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given sequences; ``indices`` (B',) indexes sequences."""
        if self.parts:
            self._select_parts(indices)
        else:
            super().batch_select_indices(self._rows(indices))
        self._select_queries(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.parts and self.choices is not None:
            self.batch_select_indices(
                torch.arange(len(self.choices), device=self.choices.device).repeat_interleave(repeats)
            )
            return
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
        choices = [(cache.choices, cache.decision_gate) for cache in caches if cache.choices is not None]
        if choices:
            self.decide(*(torch.cat(each) for each in zip(*choices, strict=True)))
        self.frozen_query = None

    def crop(self, tokens_to_remove: int) -> None:
        """Remove ``-tokens_to_remove`` positions from the end, as transformers does.

        Raises:
            ValueError: the query would be cropped; the hidden states it was pooled from are not kept.
        """
        pooled = self.queries is not None or self.choices is not None
        if tokens_to_remove and pooled and self.query_mask is not None:
            in_query = self.query_mask.bool().any(dim=0).nonzero()
            end = int(in_query.max()) + 1 if len(in_query) else 0
            if self.get_seq_length() - abs(tokens_to_remove) < end:
                raise ValueError("crop: a DualStreamCache cannot be cropped inside its query")
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Clear the cache, the query, its mask and the decision."""
        if self.parts:
            self.__init__(config=self._config, batch_both=self.batch_both)  # type: ignore[misc]
        super().reset()
        self.query_mask = self.queries = self.frozen_query = self.choices = self.decision_gate = self.parts = None

    def _agrees(self, query_mask: torch.Tensor, start: int) -> bool:
        """Whether ``query_mask`` equals the cache's mask on the first ``start`` positions."""
        if self.query_mask is None:
            return False
        given, used = (
            functional.pad(mask[:, :start].bool(), (0, max(0, start - mask.shape[1])))
            for mask in (query_mask, self.query_mask.to(query_mask.device))
        )
        return torch.equal(given, used)

    def _is_decided(self) -> bool:
        return self.choices is not None and bool((self.choices != BOTH).any())

    def _select_parts(self, sequences: torch.Tensor) -> None:
        """Select sequences (B',) of a split batch; their choices are not changed yet."""
        assert self.choices is not None and self.parts
        sequences = sequences.to(self.choices.device)
        choices, parts = self.choices[sequences], []
        for part in self.parts:
            rows = (choices == part.choice).nonzero()[:, 0]
            if len(rows):
                # indices within the part
                part.cache.reorder_cache(torch.searchsorted(part.rows, sequences[rows]))  # type: ignore[arg-type]
                parts.append(CachePart(part.choice, rows, part.cache))
        self._set_parts(parts)

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
        if self.choices is not None and self.decision_gate is not None:
            rows = sequences.to(self.choices.device)
            self.choices, self.decision_gate = self.choices[rows], self.decision_gate[rows]


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


def trim_cache(cache: Cache, start: int) -> None:
    """Remove the first ``start`` positions of every sequence of a cache that holds keys and values by position."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            if tensor is not None and tensor.numel():
                setattr(layer, name, tensor[..., start:, :])
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length -= start
    if isinstance(cache, DualStreamCache) and cache.query_mask is not None:
        cache.query_mask = cache.query_mask[:, start:]


def pad_right(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Pad a mask (B, T) with zeros on the right to ``width`` columns."""
    return functional.pad(mask, (0, max(0, width - mask.shape[1])))


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


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among ``values``, also those in dicts."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
