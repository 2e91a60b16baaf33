"""The two streams of a siamese model: one set of weights, the adapter off or on.

`PeftModel.disable_adapter()` walks the whole model at every entry and makes frozen adapters
trainable again at every exit. Here the tuner layers are found once and their switch is flipped,
nothing else. Prompt learning has no layers: its tuned stream reads virtual positions first.

Legend: B batch, T positions, D width of a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Cache

from imsm.siamese.cache import SiameseCache, StreamCache
from imsm.siamese.virtual import VirtualTokens

Stream = Literal["original", "tuned", "interwoven"]
STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")
_SWITCH = "_disable_adapters"
_SWITCHED = BaseTunerLayer | AuxiliaryTrainingWrapper
_ADAPTED_ATTENTION = AdaptedAttention | AdaptedAttentionGPT


def tuner_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that an adapter changes, outermost ones only.

    PEFT's own layers, and those of one's own: a class with ``adapter_layer = True`` whose objects
    have the switch ``_disable_adapters``.
    """
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        tuner = isinstance(module, _SWITCHED | _ADAPTED_ATTENTION)
        if not (tuner or getattr(type(module), "adapter_layer", False)) or id(module) in inside:
            continue
        found.append(module)
        inside.update(id(child) for child in module.modules())
    return found


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this is open, ``module`` answers every call with ``forward``."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:  # somebody else (accelerate's hooks) had replaced it before
            module.forward = own


class Streams:
    """Runs a body as the original model, as the tuned one, or as both in one batch.

    Outside a ``with`` block the adapter is on: gradient checkpointing recomputes the tuned stream
    during the backward pass, long after the block is left.

    Args:
        model: the whole model, whose tuner layers are switched.
        body: the part of it that makes memories (no head).

    Attributes:
        doubled: whether decoding may run both streams as one batch; `imsm.adapters.probe` finds
            out for the adapter at hand. Otherwise each stream has a pass and a cache of its own.
        virtual: the positions that prompt learning puts before the tuned stream's tokens, or None.
    """

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        self.layers = tuner_layers(model)
        self._off = {layer: _off_switch(layer) for layer in self.layers}
        self.body = body
        self.virtual: VirtualTokens | None = None
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            self.virtual = VirtualTokens(model, body)
        whole = any(isinstance(layer, _ADAPTED_ATTENTION) for layer in self.layers)
        self.doubled = self.virtual is None and not whole  # attention is no layer of rows

    @property
    def adapted(self) -> bool:
        """Whether there is a tuned stream at all."""
        return bool(self.layers) or self.virtual is not None

    def memory(
        self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None
    ) -> torch.Tensor:
        """The memories (B, T, D) of the "original" or the "tuned" stream."""
        if isinstance(cache, StreamCache):
            (cache,) = cache.bodies
        if stream == "tuned" and self.virtual is not None:
            return self.virtual.memory(inputs, cache=cache)
        with self.original() if stream == "original" else nullcontext():
            outputs = self.body(**inputs, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state

    def memories(
        self, inputs: dict[str, torch.Tensor], *, cache: SiameseCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams' memories, each (B, T, D): one pass over doubled rows, or two passes.

        Two for gradients: a doubled pass would keep activations of both halves, and a checkpointed
        layer would be recomputed as if it were not doubled. The original memory never has a
        gradient.
        """
        gradients = cache is None and torch.is_grad_enabled()
        doubled = self.doubled if cache is None else cache.doubled
        if gradients or not doubled:
            first, second = (None, None) if cache is None else cache.bodies
            with torch.no_grad():
                original = self.memory(inputs, stream="original", cache=first)
            return original, self.memory(inputs, stream="tuned", cache=second)
        both = {name: torch.cat([value, value]) for name, value in inputs.items()}
        body_cache = None if cache is None else cache.bodies[0]
        with self.both():
            outputs = self.body(**both, past_key_values=body_cache, use_cache=cache is not None)
        original, tuned = outputs.last_hidden_state.chunk(2)
        return original, tuned

    @contextmanager
    def original(self) -> Iterator[None]:
        """The adapter is off: the body is the original model, bit for bit (DESIGN, invariant 2)."""
        with ExitStack() as stack:
            for off in self._off.values():
                stack.enter_context(off())
            yield

    @contextmanager
    def both(self) -> Iterator[None]:
        """A batch of 2B rows: the first half runs as the original model, the second as the tuned.

        Right for every tuner layer: its base layer sees the original half, the layer itself the
        tuned half; all other weights are read once for both.
        """
        with ExitStack() as stack:
            for layer, off in self._off.items():
                halves = partial(_both_halves, off, layer.forward)
                stack.enter_context(forward_replaced(layer, halves))
            yield


def _off_switch(layer: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes blocks in which an adapted layer is what it stands around."""
    if isinstance(layer, _ADAPTED_ATTENTION):  # it has no switch
        return partial(forward_replaced, layer, layer.model.forward)
    # experts have a layer around a layer for each weight, trained tokens one inside a wrapper
    return partial(_flipped, [each for each in layer.modules() if hasattr(each, _SWITCH)])


@contextmanager
def _flipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    before = [getattr(each, _SWITCH) for each in layers]
    for each in layers:
        setattr(each, _SWITCH, True)
    try:
        yield
    finally:
        for each, was in zip(layers, before, strict=True):
            setattr(each, _SWITCH, was)


def _both_halves(
    off: Callable[[], AbstractContextManager[None]],
    tuned: Callable[..., Any],
    *arguments: Any,
    **named: Any,
) -> Any:
    """One tuner layer over doubled rows, (2B, ...) or flattened (2BT, ...).

    Where the rows are all that it is given, each half goes through once. A router or experts are
    given more, and nothing tells which of it goes by rows and which only happens to be as long: all
    of it goes through twice, and of every output the halves are taken.
    """
    if len(arguments) == 1 and not named:
        original_rows, tuned_rows = arguments[0].chunk(2)
        with off():
            original = tuned(original_rows)
        return _joined(original, tuned(tuned_rows))
    with off():
        original = tuned(*arguments, **named)
    changed = tuned(*arguments, **named)
    if isinstance(original, tuple):
        return tuple(map(_halves_of, original, changed))
    return _halves_of(original, changed)


def _halves_of(original: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """The original stream's rows of one output, and the tuned stream's of the other."""
    return torch.cat([original.chunk(2)[0], tuned.chunk(2)[1]])


def _joined(original: Any, tuned: Any) -> Any:
    if isinstance(original, tuple):
        return tuple(map(_joined, original, tuned))
    return torch.cat([original, tuned])
