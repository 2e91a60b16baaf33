"""A prefilled decoding session: KV cache and next-token logits of a batch of prompts.

Prompts are processed once; any number of continuations can be scored or decoded from there. A common prefix of all
prompts is processed once for the batch. Finished rows can be dropped, so that they do not slow down the others, and
rows of another session can join.

Shapes: B rows, T cached positions, n new positions, V vocabulary size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch.nn import functional
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from imsm.data.batching import collate_prompts
from imsm.models.siamese.kv_cache import DualStreamCache, concat_caches, pad_right, trim_cache
from imsm.models.siamese.model import SiameseForCausalLM

MIN_SAVED_POSITIONS = 256
"""A common prefix is processed separately if that saves at least this many positions."""
MAX_PREFILL_TOKENS = 2048
"""Prompt tokens per pass: larger passes use more memory, and on a CPU more time, without a gain."""


class DecodingSession:
    """The selected stream of a model on a batch of prompts.

    ``prompts`` are token ids; each prompt is its query. At most ``max_new_tokens`` tokens may follow.
    A backbone without cache support processes its sequences from the start at every step. With ``both_streams`` both
    streams are run, whichever is selected, and their hidden states are kept (`SiameseForCausalLM.forward_streams`).

    Attributes:
        logits: logits of each row's next token, (B, V).
        gate: mean weight of the original at that position, (B,); None without a gate.
        choices: streams that each row continues with, (B,), as indices into `imsm.models.siamese.skip.CHOICES`; None
            without `skip_threshold`, and with ``both_streams``.
        streams: with ``both_streams``: h_o and h_t at that position, (B, 1, D) each, and the gate's weights
            (B, 1, D or 1), or None for the original and the tuned stream.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: SiameseForCausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        pad_id: int,
        max_new_tokens: int = 0,
        both_streams: bool = False,
    ) -> None:
        self.model = model
        self._config = model.config.get_text_config(decoder=True)
        self._cache: Cache | None = None
        if model.config.supports_cache:
            self._cache = model.new_dual_cache() if both_streams else model.new_cache()
        self._both_streams = both_streams
        self.logits: torch.Tensor
        self.gate: torch.Tensor | None
        self.choices: torch.Tensor | None = None
        self.streams: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
        self._longest = max(map(len, prompts)) + max_new_tokens
        batches = self._prefill_batches(prompts, max_new_tokens=max_new_tokens)
        if len(batches) > 1:
            prefill = partial(
                DecodingSession, model, pad_id=pad_id, max_new_tokens=max_new_tokens, both_streams=both_streams
            )
            self._concat([prefill(prompts[batch]) for batch in batches])
            return
        prefix = self._shared_prefix(prompts, max_new_tokens=max_new_tokens)
        ids, mask = collate_prompts([prompt[prefix:] for prompt in prompts], pad_id=pad_id, device=model.device)
        if prefix:
            prefix_ids = torch.tensor([prompts[0][:prefix]], device=model.device)
            self._ids = self._mask = prefix_ids[:, :0]
            self._query_mask = torch.ones_like(prefix_ids)
            # one more column, because the prompts do not end with the prefix
            self._forward(prefix_ids, self._query_mask, query_mask=functional.pad(self._query_mask, (0, 1), value=1))
            self.select_rows([0] * len(prompts))
            self._query_mask = torch.cat([self._query_mask, mask], dim=1)
        else:
            self._ids, self._mask, self._query_mask = ids[:, :0], mask[:, :0], mask
        self._forward(ids, mask, query_mask=self._query_mask)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._mask)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Append ``tokens`` (B, n) to every row and return the logits after each, (B, n, V).

        ``mask`` (B, n) is 1 on tokens and 0 on right padding; None without padding.
        """
        mask = torch.ones_like(tokens) if mask is None else mask
        return self._forward(tokens, mask, logits_to_keep=tokens.shape[1])

    @torch.inference_mode()
    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in this order; they may repeat."""
        if list(rows) != list(range(len(self))):
            self._select(rows)

    def can_extend(self, other: DecodingSession) -> bool:
        """Whether the rows of ``other``, a session of the same model, can join this one."""
        layers = [] if self._cache is None or other._cache is None else [*self._cache.layers, *other._cache.layers]
        if self.choices is not None or other.choices is not None:
            return False
        longest = max(self._longest, other._longest)
        return self._can_pad_left(layers, longest) and self._both_streams == other._both_streams

    @torch.inference_mode()
    def extend(self, other: DecodingSession) -> None:
        """Add the rows of ``other`` after those of this session; ``other`` is consumed."""
        for session in (self, other):
            # positions after the prompt, so that the masks of both end at the last cached position
            session._pad_query_mask()
        self._concat([self, other])
        self._longest = max(self._longest, other._longest)

    @torch.inference_mode()
    def trim(self) -> None:
        """Remove the leading positions that are padding in all rows."""
        if self._cache is None or not self._can_pad_left(self._cache.layers, self._longest):
            return
        start = int(self._mask.any(dim=0).long().argmax())
        if start:
            trim_cache(self._cache, start)
            self._mask, self._query_mask = self._mask[:, start:], self._query_mask[:, start:]

    @torch.inference_mode()
    def fork(self, rows: Sequence[int]) -> DecodingSession:
        """Return a new session with the given rows; this one is unchanged."""
        other = copy.copy(self)
        if self._cache is not None:
            # selecting rows replaces keys and values, so a deep copy may share them
            shared = [(layer.keys, layer.values) for layer in self._cache.layers if _is_positional(layer)]
            memo = {id(tensor): tensor for pair in shared for tensor in pair}
            other._cache = copy.deepcopy(self._cache, memo)
        other._select(rows)
        return other

    def release(self) -> tuple[Cache, torch.Tensor]:
        """Return the cache and the mask (B, T) of its positions; the session cannot be used afterwards."""
        assert self._cache is not None
        cache, self._cache = self._cache, None
        return cache, self._mask

    def holds_positions(self) -> bool:
        """Whether all layers of the cache hold keys and values by position."""
        return self._cache is not None and all(map(_is_positional, self._cache.layers))

    def rope_depends_on_length(self) -> bool:
        """Whether the rotary frequencies depend on the length of the sequence."""
        return _max_static_rope_length(self._config) < math.inf

    def row_bytes(self) -> int:
        """Return the size of one row of the cache in bytes."""
        layers = [] if self._cache is None else filter(_is_positional, self._cache.layers)
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None) // len(self)

    def _prefill_batches(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[slice]:
        """Split prompts into batches of `MAX_PREFILL_TOKENS` if their caches can be concatenated."""
        longest = max(map(len, prompts)) + max_new_tokens
        if not self._can_pad_left([] if self._cache is None else self._cache.layers, longest):
            return [slice(0, len(prompts))]
        batches, start, longest = [], 0, 0
        for row, prompt in enumerate(prompts):
            longest = max(longest, len(prompt))
            if row > start and longest * (row + 1 - start) > MAX_PREFILL_TOKENS:
                batches.append(slice(start, row))
                start, longest = row, len(prompt)
        return [*batches, slice(start, len(prompts))]

    def _can_pad_left(self, layers: Sequence[object], longest: int) -> bool:
        """Whether the cached rows can be padded on the left, if the longest row has ``longest`` positions."""
        if self.model.streams.virtual_tokens is not None or not layers or not all(map(_is_positional, layers)):
            return False
        # a window or a length-dependent RoPE would notice the padding
        return longest <= min(_attention_window(self._config), _max_static_rope_length(self._config))

    def _shared_prefix(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> int:
        """Return the length of the common prefix to process once; every prompt is longer."""
        shortest, longest = min(map(len, prompts)), max(map(len, prompts))
        columns = enumerate(zip(*prompts, strict=False))
        common = next((n for n, tokens in columns if len(set(tokens)) > 1), shortest - 1)
        # at least one token of each prompt is left, whose logits start the answer
        common = min(common, shortest - 1)
        if common * (len(prompts) - 1) < MIN_SAVED_POSITIONS or self._cache is None:
            return 0
        virtual_tokens = self.model.streams.virtual_tokens
        length = longest + max_new_tokens + (0 if virtual_tokens is None else virtual_tokens.count)
        if length > _max_static_rope_length(self._config):
            return 0
        if shortest == longest:
            return common
        # prompts of different lengths are padded after the prefix, inside the sequence
        inner_padding = self.model.config.supports_inner_padding and all(map(_is_positional, self._cache.layers))
        return common if inner_padding and length <= _attention_window(self._config) else 0

    def _concat(self, sessions: Sequence[DecodingSession]) -> None:
        """Take over the rows of several sessions."""
        width = max(session._mask.shape[1] for session in sessions)

        def pad_left(masks: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])

        self._mask = pad_left([session._mask for session in sessions])
        self._query_mask = pad_left([session._query_mask for session in sessions])
        self._ids = self._mask[:, :0]
        self.logits = torch.cat([session.logits for session in sessions])
        gates = [session.gate for session in sessions if session.gate is not None]
        self.gate = torch.cat(gates) if gates else None
        choices = [session.choices for session in sessions if session.choices is not None]
        self.choices = torch.cat(choices) if choices else None
        streams = [session.streams for session in sessions if session.streams is not None]
        self.streams = _map_streams(torch.cat, *streams) if streams else None
        self._cache = concat_caches([session._cache for session in sessions if session._cache is not None])

    def _pad_query_mask(self) -> None:
        self._query_mask = pad_right(self._query_mask, self._mask.shape[1])
        if isinstance(self._cache, DualStreamCache) and self._cache.query_mask is not None:
            self._cache.query_mask = pad_right(self._cache.query_mask, self._mask.shape[1])

    def _select(self, rows: Sequence[int]) -> None:
        indices = torch.tensor(rows, device=self._mask.device)
        self._query_mask, self._mask = self._query_mask[indices], self._mask[indices]
        self._ids, self.logits = self._ids[indices], self.logits[indices]
        if self.gate is not None:
            self.gate = self.gate[indices]
        if self.choices is not None:
            self.choices = self.choices[indices]
        if self.streams is not None:
            self.streams = _map_streams(lambda each: each[0][indices], self.streams)
        # reorder_cache is the only selection of transformers that all cache layers implement
        if self._cache is not None:
            self._cache.reorder_cache(indices)  # type: ignore[arg-type]

    def _forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        *,
        query_mask: torch.Tensor | None = None,
        logits_to_keep: int = 1,
    ) -> torch.Tensor:
        """Append tokens and return the logits of the last ``logits_to_keep`` of them."""
        self._mask = torch.cat([self._mask, mask], dim=1)
        if self._cache is None:
            self._ids = torch.cat([self._ids, tokens], dim=1)
            query_mask = self._query_mask
        ids = tokens if self._cache is not None else self._ids
        if self._both_streams:
            return self._forward_streams(ids, query_mask, logits_to_keep)
        output = self.model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            query_mask=query_mask,
            logits_to_keep=logits_to_keep,
        )
        logits: torch.Tensor = output.logits
        # a view would keep all logits in memory
        self.logits = logits[:, -1].clone()
        self.gate = None if output.gate is None else output.gate[:, -1]
        self.choices = output.choices
        return logits

    def _forward_streams(
        self, ids: torch.Tensor, query_mask: torch.Tensor | None, logits_to_keep: int
    ) -> torch.Tensor:
        assert self._cache is None or isinstance(self._cache, DualStreamCache)
        output = self.model.forward_streams(
            ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            query_mask=query_mask,
            logits_to_keep=logits_to_keep,
        )
        self.logits = output.logits[:, -1].clone()
        self.gate = None if output.gate is None else output.gate[:, -1].mean(dim=-1)
        self.streams = _map_streams(lambda each: each[0][:, -1:], (output.original, output.tuned, output.gate))
        return output.logits


Streams = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _map_streams(function: Callable[[list[torch.Tensor]], torch.Tensor], *sessions: Streams) -> Streams:
    """Apply ``function`` to the list of each tensor of several sessions; None stays None."""
    original, tuned, gates = zip(*sessions, strict=True)
    known = [gate for gate in gates if gate is not None]
    return function([*original]), function([*tuned]), function(known) if known else None


def _is_positional(layer: object) -> TypeGuard[DynamicLayer]:
    """Whether a cache layer holds keys and values by position, with padding anywhere."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _attention_window(config: PretrainedConfig) -> float:
    """Return the narrowest attention window or chunk of any layer, in positions."""
    windows = [
        value
        for name, value in config.to_dict().items()
        if ("window" in name or "chunk" in name)
        and not ("layer" in name or "pattern" in name)
        and isinstance(value, int)
        and value > 1
    ]
    return min(windows, default=math.inf)


def _max_static_rope_length(config: PretrainedConfig) -> float:
    """Return the length up to which rotary frequencies do not depend on the sequence length.

    Dynamic and LongRoPE frequencies change in longer sequences, and are computed per chunk.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    settings = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        each.get("original_max_position_embeddings") or config.max_position_embeddings
        for each in settings
        if each.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)
