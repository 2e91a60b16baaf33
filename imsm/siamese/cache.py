"""The key-value cache of a siamese model: both streams' rows and the query memories so far.

Of 2B rows the first B belong to the original stream, the last B to the tuned one. `generate()`
counts sequences, not rows, so reordering and selecting take indices into B and move both halves.
"""

from __future__ import annotations

import torch
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

    def query_piece(self, *, start: int, length: int, like: torch.Tensor) -> torch.Tensor:
        """The query mask of positions [start, start + length), (B, length); 0 past the query."""
        if self.query_mask is None:
            inside = torch.ones if start == 0 else torch.zeros
            return inside(like.shape[0], length, device=like.device)
        piece = self.query_mask[:, start : start + length].to(like.device, torch.float32)
        return torch.nn.functional.pad(piece, (0, length - piece.shape[1]))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder sequences; ``beam_idx`` (B,) counts sequences."""
        super().reorder_cache(self._rows(beam_idx))
        self._select_queries(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given sequences; ``indices`` (B',) counts sequences."""
        super().batch_select_indices(self._rows(indices))
        self._select_queries(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence: rows repeat in place, so the halves stay halves."""
        super().batch_repeat_interleave(repeats)
        if self.queries is not None:
            rows = torch.arange(len(self.queries[0].count)).repeat_interleave(repeats)
            self._select_queries(rows)

    def reset(self) -> None:
        """Forget everything, the query too."""
        super().reset()
        self.queries = None

    def _rows(self, sequences: torch.Tensor) -> torch.Tensor:
        return torch.cat([sequences, sequences + self.layers[0].keys.shape[0] // 2])

    def _select_queries(self, sequences: torch.Tensor) -> None:
        if self.query_mask is not None:
            self.query_mask = self.query_mask.index_select(0, sequences.to(self.query_mask.device))
        if self.queries is not None:
            original, tuned = self.queries
            rows = sequences.to(original.count.device)
            self.queries = (original.select(rows), tuned.select(rows))
