"""The rest of a decoding session with caches of fixed length: one token a step, at fixed addresses.

Every step runs the same operations on tensors of the same shapes: keys and values are written by index, and attention
reads a block of columns under a mask. On a GPU the step is recorded as a CUDA graph, once for each number of rows and
of columns, and replayed, so that it costs the CPU one launch instead of one per operation; a CPU runs the same step
without a graph. Growing caches copy all keys and values at every token, these write one column. The masked columns
change the order of sums, and with it the last bits: in float32 the logits are within 1e-5 of the session's.

Shapes: B rows, T cached positions at the start, L columns that attention reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.skip import CHOICES
from imsm.utils.errors import UserError, first_line

_KEY = "evaluation.static_cache=true"
# attention reads the columns in use, rounded up to a multiple of this; more columns need a new graph
_BLOCK = 128
_WARM_UP_STEPS = 2
_FULL, _SLIDING = "full_attention", "sliding_attention"
_MASKS = ("sdpa", "eager")


class StaticDecodingSession:
    """The rows of a `DecodingSession` after at least one token of their responses, with static caches.

    The session is consumed. At most ``max_new_tokens`` tokens may follow. ``use_graph``: record CUDA graphs; None: on
    a GPU. With `skip_threshold` the rows of each choice are one part, each with a graph. ``check``: compare a
    step with the session's, once per model and stream.

    Attributes:
        model: the session's model.
        logits: logits of each row's next token, (B, V); overwritten by the next step.
        gate: mean weight of the original at that position, (B,); None without a gate.

    Raises:
        UserError: the model or its stream cannot be decoded this way.
    """

    def __init__(
        self, session: DecodingSession, *, max_new_tokens: int, use_graph: bool | None = None, check: bool = True
    ) -> None:
        self.model, self.logits, self.gate = session.model, session.logits, session.gate
        self.model.streams.guard.check()
        reason = _unsupported(session)
        if reason is not None:
            raise UserError(f"{_KEY}: {reason}; omit it")
        if check:
            _check_once(session, max_new_tokens=max_new_tokens)
        cache, mask = session.release()
        use_graph = mask.device.type == "cuda" if use_graph is None else use_graph
        options: dict[str, Any] = {"new_tokens": max_new_tokens, "use_graph": use_graph}
        parts = cache.split() if isinstance(cache, DualStreamCache) else []
        # of each part the rows, None for all
        self._parts: list[tuple[torch.Tensor | None, _StaticPart]] = [
            (part.rows, _StaticPart(self.model, CHOICES[part.choice], part.cache, mask[part.rows], **options))
            for part in parts
        ] or [(None, _StaticPart(self.model, self.model.stream, cache, mask, **options))]
        self._steps_left = max_new_tokens

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.logits)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> None:
        """Append ``tokens`` (B, 1), one per row, and set `logits` and `gate`."""
        if not self._steps_left:
            raise ValueError("forward: the caches are full; give a larger max_new_tokens")
        self._steps_left -= 1
        for rows, part in self._parts:
            part.forward(tokens if rows is None else tokens[rows])
            if rows is None:
                self.logits, self.gate = part.logits, part.gate
            else:
                assert self.gate is not None and part.gate is not None
                self.logits[rows] = part.logits
                self.gate[rows] = part.gate

    @torch.inference_mode()
    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in this order; the next step records new graphs."""
        self.logits = self.logits[list(rows)]
        self.gate = None if self.gate is None else self.gate[list(rows)]
        parts: list[tuple[torch.Tensor | None, _StaticPart]] = []
        for part_rows, part in self._parts:
            if part_rows is None:
                part.select_rows(rows)
                parts.append((None, part))
                continue
            before = {row: number for number, row in enumerate(part_rows.tolist())}
            kept = [number for number, row in enumerate(rows) if row in before]
            if kept:
                part.select_rows([before[rows[number]] for number in kept])
                parts.append((torch.tensor(kept, device=part_rows.device), part))
        self._parts = parts


class _StaticPart:
    """Rows that are decoded with the same stream, or with both.

    Attributes:
        logits: logits of each row's next token, (B, V), at a fixed address.
        gate: mean weight of the original, (B,); None for a stream that was selected for the model.
    """

    logits: torch.Tensor
    gate: torch.Tensor | None

    def __init__(
        self,
        model: SiameseForCausalLM,
        stream: str,
        cache: Cache,
        mask: torch.Tensor,
        *,
        new_tokens: int,
        use_graph: bool,
    ) -> None:
        self._model, self._stream = model, stream
        width, device = mask.shape[1], mask.device
        length = _round_up(width + new_tokens)
        self._windows = _windows(cache, model, length)
        self._frozen: tuple[torch.Tensor | None, ...] = (None, None)
        own = cache.decoder_caches if isinstance(cache, PrefixedCache) else (cache,)
        static = [_static_cache(each, width=width, length=length) for each in own]
        self._cache: Cache = static[0]
        if isinstance(cache, DualStreamCache):
            if model.gate is not None and model.gate.reads_query:
                assert cache.frozen_query is not None
                self._frozen = cache.frozen_query
            cache.decoder_caches, cache.layers = tuple(static), [layer for each in static for layer in each.layers]
            self._cache = cache
        self._columns = torch.arange(length, device=device)
        # padding stays closed; columns after the prompt are opened by their number
        self._filled = torch.nn.functional.pad(mask.bool(), (0, length - width), value=True)
        # of the host: the next column to write, and L
        self._next_column, self._length = width, 0
        self._position = torch.tensor(width, device=device)
        self._position_ids = mask.sum(dim=1, keepdim=True)
        self._tokens = torch.zeros_like(self._position_ids)
        self._use_graph = use_graph
        self._graph: torch.cuda.CUDAGraph | None = None

    def forward(self, tokens: torch.Tensor) -> None:
        """Append ``tokens`` (B, 1) and set `logits` and `gate`."""
        self._tokens.copy_(tokens)
        self._next_column += 1
        if self._next_column > self._length:
            self._read_columns(_round_up(self._next_column))
        if self._use_graph and self._graph is None:
            self._record()
        if self._graph is None:
            self.logits, self.gate = self._step()
        else:
            self._graph.replay()

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep the given rows, in this order."""
        # the old graph writes to the old addresses
        self._graph = None
        indices = torch.tensor(rows, device=self._tokens.device)
        self._filled, self._position_ids = self._filled[indices], self._position_ids[indices]
        self._tokens = self._tokens[indices]
        self._frozen = tuple(None if each is None else each[indices] for each in self._frozen)
        # a dual batch selects both of its halves
        self._cache.reorder_cache(indices)  # type: ignore[arg-type]

    def _step(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one token of each row; return logits (B, V) and gate (B,)."""
        model, cache = self._model, self._cache
        inputs = {"input_ids": self._tokens, "position_ids": self._position_ids, "attention_mask": self._masks()}
        gate = None
        if isinstance(cache, DualStreamCache):
            original, tuned = model.streams.both_hidden_states(inputs, cache=cache)
            logits, weight = model._mix(original, tuned, *self._frozen)
            gate = weight[:, -1]
        else:
            logits = model.head(model.streams.hidden_states(inputs, stream=self._stream, cache=cache))
            if self._stream != model.stream:
                # of a decided query
                gate = logits.new_full((len(logits),), float(self._stream == "original"), dtype=torch.float32)
        self._position.add_(1)
        self._position_ids.add_(1)
        return logits[:, -1], gate

    def _masks(self) -> Any:
        """Return the masks (B, 1, 1, L) of the next token, by kind of layer if there are two."""
        columns = self._columns[: self._length]
        visible = self._filled[:, : self._length] & (columns <= self._position)
        masks = {
            kind: visible if window is None else visible & (columns > self._position - window)
            for kind, window in self._windows.items()
        }
        config = self._model.backbone.config
        if config._attn_implementation == "eager":
            dtype = next(self._model.backbone.parameters()).dtype
            lowest = torch.finfo(dtype).min
            zeros = {kind: torch.zeros_like(mask, dtype=dtype) for kind, mask in masks.items()}
            masks = {kind: zeros[kind].masked_fill(~mask, lowest) for kind, mask in masks.items()}
        shaped = {kind: mask[:, None, None] for kind, mask in masks.items()}
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))

    def _read_columns(self, length: int) -> None:
        """Let attention read the first ``length`` columns."""
        self._length, self._graph = length, None
        for layer in self._cache.layers:
            if isinstance(layer, _StaticLayer):
                layer.length = length

    def _record(self) -> None:
        """Record the step as a CUDA graph; without one, with a warning, if an operation does not allow it."""
        layers = [layer for layer in self._cache.layers if isinstance(layer, StaticLayer) and layer.is_initialized]
        counters = [self._position, self._position_ids, *(layer.cumulative_length for layer in layers)]
        before = [counter.clone() for counter in counters]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            # kernels are chosen and workspaces allocated before the recording; each step writes the same column
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_STEPS):
                    self._step()
                    _restore(counters, before)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self._step()
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            self._use_graph = False
            print(f"warning: {_KEY}: no CUDA graph can be recorded ({first_line(error)})", file=sys.stderr)
            torch.cuda.synchronize()
            _restore(counters, before)
            return
        self._graph, (self.logits, self.gate) = graph, outputs


class _StaticLayer(StaticLayer):
    """A static layer of which attention reads the first ``length`` columns."""

    length: int

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next columns; return keys and values (B, H, L, E)."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys[:, :, : self.length], values[:, :, : self.length]


def _round_up(columns: int) -> int:
    return -(-columns // _BLOCK) * _BLOCK


# streams of each model that gave the logits of growing caches
_checked: WeakKeyDictionary[SiameseForCausalLM, set[str]] = WeakKeyDictionary()


def _check_once(session: DecodingSession, *, max_new_tokens: int) -> None:
    """Compare the logits of a static step with those of the session, on two of its rows.

    Decoders may read a mask that is prepared for them in another way than expected, or not at all.

    Raises:
        UserError: they differ, or the decoder cannot run the step.
    """
    model = session.model
    checked = _checked.setdefault(model, set())
    # the check runs two more tokens, for which there may be no position
    if model.stream in checked or max_new_tokens < 2:
        return
    rows = sorted({0, len(session) - 1})
    growing, other = session.fork(rows), session.fork(rows)
    for each in (growing, other):
        tokens = each.logits.argmax(dim=-1, keepdim=True)
        each.forward(tokens)
    tokens = growing.logits.argmax(dim=-1, keepdim=True)
    growing.forward(tokens)
    name = type(model.backbone).__name__
    try:
        static = StaticDecodingSession(other, max_new_tokens=1, use_graph=False, check=False)
        static.forward(tokens)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError) or "out of memory" in str(error):
            raise
        raise UserError(
            f"{_KEY}: {name} cannot run a step with prepared masks ({first_line(error)}); omit it"
        ) from error
    expected = growing.logits.float()
    difference = (static.logits.float() - expected).abs().max() / expected.abs().max()
    # of rounding; in float32 it was at most 1e-5
    if difference > torch.finfo(growing.logits.dtype).eps ** 0.5:
        raise UserError(f"{_KEY}: {name} gives other logits with prepared masks (by {float(difference):.1g}); omit it")
    checked.add(model.stream)


def _restore(counters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for counter, value in zip(counters, values, strict=True):
        counter.copy_(value)


def _unsupported(session: DecodingSession) -> str | None:
    """Return why a session cannot continue with static caches; None if it can."""
    model, config = session.model, session.model.backbone.config
    if model.streams.virtual_tokens is not None:
        return "prompt learning has caches with virtual tokens"
    if not model.config.supports_cache:
        return f"{type(model.backbone).__name__} reads complete sequences at every step"
    if not session.holds_positions():
        return f"layers of {type(model.backbone).__name__} keep other states than keys and values"
    if session.rope_depends_on_length():
        return "the rotary frequencies depend on the length of the sequence"
    if config._attn_implementation not in _MASKS:
        return (
            f"backbone.attn_implementation={config._attn_implementation} needs other masks than {' and '.join(_MASKS)}"
        )
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return "the layers are sharded over several processes"
    return None


def _windows(cache: Cache, model: SiameseForCausalLM, length: int) -> dict[str, int | None]:
    """Return the attention window of each kind of layer, None if it reads all ``length`` columns.

    Raises:
        UserError: the masks of two kinds of layers cannot be given to the decoder.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
    if all(window >= length for window in windows):
        return {_FULL: None}
    # a decoder whose layers all have one window takes one mask
    if len(windows) == 1 and all(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers):
        return {_SLIDING: windows.pop()}
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
    if len(windows) > 1 or kinds != {_FULL, _SLIDING}:
        raise UserError(f"{_KEY}: the layers of {type(model.backbone).__name__} have several kinds of masks; omit it")
    return {_FULL: None, _SLIDING: windows.pop()}


def _static_cache(cache: Cache, *, width: int, length: int) -> Cache:
    """Return a cache of ``length`` columns with those of ``cache``, ``width``, which is emptied layer by layer."""
    static: list[Any] = []
    for layer in cache.layers:
        # checked by `_unsupported`
        assert isinstance(layer, DynamicLayer)
        copied = _StaticLayer(max_cache_len=length)
        # layers that read the keys of another one have none
        if layer.keys is not None and layer.values is not None and layer.keys.numel():
            copied.lazy_initialization(layer.keys, layer.values)
            assert copied.keys is not None and copied.values is not None
            # a layer with a window keeps its last columns only
            columns = slice(width - layer.keys.shape[-2], width)
            copied.keys[:, :, columns] = layer.keys
            copied.values[:, :, columns] = layer.values
            copied.cumulative_length.fill_(width)
            layer.keys = layer.values = None
        static.append(copied)
    return Cache(layers=static)
