"""The key-value cache of a siamese model: both streams' rows and the query memories so far.

Of 2B rows the first B belong to the original stream, the last B to the tuned one. `generate()`
counts sequences, not rows, so reordering and selecting take indices into B and move both halves.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import DynamicCache, PretrainedConfig

from imsm.siamese.query import QueryState


class SiameseCache(DynamicCache):
    """A dynamic cache over doubled rows.

    Args:
        config: the backbone's (text) configuration: it names the kinds of its layers.
        query_mask: 1 where a position belongs to the query, (B, T_query); None: the first piece
            that is fed is the query, whatever follows is the answer.
    """

    def __init__(self, *, config: PretrainedConfig, query_mask: torch.Tensor | None = None) -> None:
        super().__init__(config=config)
        self.query_mask = query_mask
        self.queries: tuple[QueryState, QueryState] | None = None  # original, tuned

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
            self.query_mask = query_mask
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
        self.query_mask = self.queries = None

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
        keys = getattr(self.layers[0], "keys", None) if self.layers else None
        return sequences if keys is None else torch.cat([sequences, sequences + len(keys) // 2])

    def _select_queries(self, sequences: torch.Tensor) -> None:
        if self.query_mask is not None:
            self.query_mask = self.query_mask.index_select(0, sequences.to(self.query_mask.device))
        if self.queries is not None:
            original, tuned = self.queries
            rows = sequences.to(original.count.device)
            self.queries = (original.select(rows), tuned.select(rows))
