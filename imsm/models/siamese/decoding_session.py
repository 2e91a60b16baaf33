"""What a stream has read so far, and what it expects next: a batch of texts that it can go on with.

A prompt is read once, and answers of any number are weighed or decoded from there; how all prompts
begin is read once for all of them. Rows that are done are let go of, so that the rest does not wait
for them.

Legend: B rows, T positions read so far, n positions read next, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from imsm.data.batching import collate_prompts
from imsm.models.siamese.kv_cache import joined

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from imsm.models.siamese.model import SiameseForCausalLM


_WORTH = 256
"""Positions: beginnings that spare fewer are not worth a pass of their own."""
_AT_ONCE = 2048
"""Tokens of prompts that one pass reads: more take memory, and on a CPU time, for nothing."""


class DecodingSession:
    """The chosen stream of a model on a batch of texts.

    Args:
        model: its ``stream`` reads.
        prompts: token ids, B of them; they are the queries.
        pad_id: fills up the shorter ones.
        then: so many tokens may be read after them.

    Attributes:
        logits: of each row's next token, (B, V).
        gate: the original memory's weight in them, (B,); None without a gate.

    A backbone that cannot go on from a cache reads its texts from the beginning every time.
    """

    @torch.inference_mode()
    def __init__(
        self, model: SiameseForCausalLM, prompts: Sequence[Sequence[int]], *, pad_id: int, then: int = 0
    ) -> None:
        self.model = model
        self._cache = model.new_cache() if model.config.cached else None
        self.logits: torch.Tensor
        self.gate: torch.Tensor | None
        parts = self._parts(prompts, then=then)
        if len(parts) > 1:
            self._join([DecodingSession(model, prompts[each], pad_id=pad_id, then=then) for each in parts])
            return
        begun = self._shared(prompts, then=then)
        rest = [each[begun:] for each in prompts]
        ids, mask = collate_prompts(rest, pad_id=pad_id, device=model.device)
        if begun:
            first = torch.tensor([prompts[0][:begun]], device=model.device)
            self._texts = self._mask = first[:, :0]
            self._query = torch.ones_like(first)
            self._prefill(first, self._query, query=self._query)
            self.select_rows([0] * len(prompts))
            self._query = torch.cat([self._query, mask], dim=1)
        else:
            self._texts, self._mask, self._query = ids[:, :0], mask[:, :0], mask
        self._prefill(ids, mask, query=self._query)

    def _parts(self, prompts: Sequence[Sequence[int]], *, then: int) -> list[slice]:
        """Which prompts are read in a pass: all, where the parts could not be put together."""
        virtual = self.model.streams.virtual is not None
        layers = [] if self._cache is None else self._cache.layers
        if virtual or not layers or not all(map(_plain, layers)):
            return [slice(0, len(prompts))]
        config = self.model.config.get_text_config(decoder=True)
        if max(map(len, prompts)) + then > min(_window(config), _frequencies_hold(config)):
            return [slice(0, len(prompts))]
        parts, start, longest = [], 0, 0
        for place, prompt in enumerate(prompts):
            longest = max(longest, len(prompt))
            if place > start and longest * (place + 1 - start) > _AT_ONCE:
                parts.append(slice(start, place))
                start, longest = place, len(prompt)
        return [*parts, slice(start, len(prompts))]

    def _join(self, parts: Sequence[DecodingSession]) -> None:
        """Go on with all rows of readings that were made one after another."""
        width = max(part._mask.shape[1] for part in parts)

        def left(masks: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([functional.pad(m, (width - m.shape[1], 0)) for m in masks])

        self._mask, self._query = left([p._mask for p in parts]), left([p._query for p in parts])
        self._texts = self._mask[:, :0]
        self.logits = torch.cat([part.logits for part in parts])
        gates = [part.gate for part in parts if part.gate is not None]
        self.gate = torch.cat(gates) if gates else None
        self._cache = joined([part._cache for part in parts if part._cache is not None])

    def _shared(self, prompts: Sequence[Sequence[int]], *, then: int) -> int:
        """How many tokens all prompts begin with, if they are read once; each has one more."""
        shortest, longest = min(map(len, prompts)), max(map(len, prompts))
        columns = enumerate(zip(*prompts, strict=False))
        common = next((n for n, tokens in columns if len(set(tokens)) > 1), shortest - 1)
        common = min(common, shortest - 1)
        if common * (len(prompts) - 1) < _WORTH or self._cache is None:
            return 0
        config = self.model.config.get_text_config(decoder=True)
        virtual = self.model.streams.virtual
        places = longest + then + (0 if virtual is None else virtual.count)
        if places > _frequencies_hold(config):
            return 0
        if shortest == longest:
            return common
        padded = self.model.config.padded_inside and all(map(_plain, self._cache.layers))
        return common if padded and places <= _window(config) else 0

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._mask)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read on.

        Args:
            tokens: (B, n).
            mask: 1 on tokens, 0 on padding on the right, (B, n); None: there is no padding.

        Returns:
            The logits after each of them, (B, n, V).
        """
        mask = torch.ones_like(tokens) if mask is None else mask
        return self._prefill(tokens, mask, keep=tokens.shape[1])

    @torch.inference_mode()
    def select_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; the others are let go of."""
        if list(rows) != list(range(len(self))):
            self._select(rows)

    def _select(self, rows: Sequence[int]) -> None:
        places = torch.tensor(rows, device=self._mask.device)
        self._query, self._mask = self._query[places], self._mask[places]
        self._texts, self.logits = self._texts[places], self.logits[places]
        if self.gate is not None:
            self.gate = self.gate[places]
        if self._cache is not None:  # the way of selecting rows that every kind of layer has
            self._cache.reorder_cache(places)  # type: ignore[arg-type]

    @torch.inference_mode()
    def fork(self, rows: Sequence[int]) -> DecodingSession:
        """Another reading of these rows; this one stays where it is."""
        other = copy.copy(self)
        if self._cache is not None:
            # keys and values are replaced when rows are selected: they need no copy before
            shared = [(layer.keys, layer.values) for layer in self._cache.layers if _plain(layer)]
            memo = {id(tensor): tensor for pair in shared for tensor in pair}
            other._cache = copy.deepcopy(self._cache, memo)
        other._select(rows)
        return other

    def row_bytes(self) -> int:
        """What one row takes of the cache."""
        layers = [] if self._cache is None else filter(_plain, self._cache.layers)
        held = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in held if tensor is not None) // len(self)

    def _prefill(
        self, tokens: torch.Tensor, mask: torch.Tensor, *, query: torch.Tensor | None = None, keep: int = 1
    ) -> torch.Tensor:
        """Logits of the last ``keep`` tokens; ``query`` marks the query's so far, as yet."""
        self._mask = torch.cat([self._mask, mask], dim=1)
        if self._cache is None:
            self._texts = torch.cat([self._texts, tokens], dim=1)
            query = self._query
        output = self.model(
            input_ids=tokens if self._cache is not None else self._texts,
            attention_mask=self._mask,
            past_key_values=self._cache,
            query_mask=query,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        self.logits = logits[:, -1].clone()  # not a view that keeps all of them
        self.gate = None if output.gate is None else output.gate[:, -1]
        return logits


def _plain(layer: object) -> TypeGuard[DynamicLayer]:
    """Whether a cache's layer is keys and values by place: there padding may stand anywhere."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _window(config: PretrainedConfig) -> float:
    """The narrowest stretch of places that attention is held to."""
    found = [
        value
        for name, value in config.to_dict().items()
        if ("window" in name or "chunk" in name)
        and not ("layer" in name or "pattern" in name)
        and isinstance(value, int)
        and value > 1
    ]
    return min(found, default=math.inf)


def _frequencies_hold(config: PretrainedConfig) -> float:
    """Up to which length rotary positions are the same however a text is fed.

    Some kinds turn at other frequencies in a longer text, and look at each piece by itself.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    found = [
        each.get("original_max_position_embeddings") or config.max_position_embeddings
        for each in kinds
        if each.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(found, default=math.inf)
