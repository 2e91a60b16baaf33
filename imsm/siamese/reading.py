"""What a stream has read so far, and what it expects next: a batch of texts that it can go on with.

A prompt is read once, and answers of any number are weighed or decoded from there. Rows that are
done are let go of, so that the rest does not wait for them.

Legend: B rows, T positions read so far, n positions read next, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from imsm.siamese.model import SiameseForCausalLM


class Reading:
    """The chosen stream of a model on a batch of texts.

    Args:
        model: its ``stream`` reads.
        prompts: token ids, padded on the left, (B, T); they are the queries.
        mask: 1 on tokens, 0 on padding, (B, T).

    Attributes:
        logits: of each row's next token, (B, V).
        gate: the original memory's weight in them, (B,); None without a gate.

    A backbone that cannot go on from a cache reads its texts from the beginning every time.
    """

    def __init__(
        self, model: SiameseForCausalLM, prompts: torch.Tensor, *, mask: torch.Tensor
    ) -> None:
        self.model = model
        self._query = mask
        self._cache = model.new_cache(query_mask=mask) if model.config.cached else None
        self._texts, self._mask = prompts[:, :0], mask[:, :0]
        self.logits: torch.Tensor
        self.gate: torch.Tensor | None
        self._read(prompts, mask, keep=1)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._mask)

    def read(self, tokens: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read on.

        Args:
            tokens: (B, n).
            mask: 1 on tokens, 0 on padding on the right, (B, n); None: there is no padding.

        Returns:
            The logits after each of them, (B, n, V).
        """
        return self._read(tokens, torch.ones_like(tokens) if mask is None else mask, keep=None)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; the others are let go of."""
        if list(rows) == list(range(len(self))):
            return
        places = torch.tensor(rows, device=self._mask.device)
        self._query, self._mask = self._query[places], self._mask[places]
        self._texts, self.logits = self._texts[places], self.logits[places]
        if self.gate is not None:
            self.gate = self.gate[places]
        if self._cache is not None:  # the way of selecting rows that every kind of layer has
            self._cache.reorder_cache(places)  # type: ignore[arg-type]

    def copy(self, rows: Sequence[int]) -> Reading:
        """Another reading of these rows; this one stays where it is."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        other.select(rows)
        return other

    def _read(self, tokens: torch.Tensor, mask: torch.Tensor, *, keep: int | None) -> torch.Tensor:
        self._mask = torch.cat([self._mask, mask], dim=1)
        if self._cache is None:
            self._texts = torch.cat([self._texts, tokens], dim=1)
        output = self.model(
            input_ids=tokens if self._cache is not None else self._texts,
            attention_mask=self._mask,
            past_key_values=self._cache,
            query_mask=None if self._cache is not None else self._query,
            logits_to_keep=keep or tokens.shape[1],
        )
        logits: torch.Tensor = output.logits
        self.logits = logits[:, -1]
        self.gate = None if output.gate is None else output.gate[:, -1]
        return logits
