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
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Cache

from imsm.models.siamese.dual_forward import SWITCH, DualStreamLayer, patched_forward
from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache
from imsm.models.siamese.virtual_tokens import VirtualTokens

Stream = Literal["original", "tuned", "interwoven"]
STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")
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


class StreamRunner:
    """Runs a body as the original model, as the tuned one, or as both in one batch.

    Outside a ``with`` block the adapter is on: gradient checkpointing recomputes the tuned stream
    during the backward pass, long after the block is left.

    Args:
        model: the whole model, whose tuner layers are switched.
        body: the part of it that makes memories (no head).

    Attributes:
        doubled: whether decoding may run both streams as one batch; `imsm.models.adapters.adapter_check` finds
            out for the adapter at hand. Otherwise each stream has a pass and a cache of its own.
        virtual: the positions that prompt learning puts before the tuned stream's tokens, or None.
    """

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        self.layers = tuner_layers(model)
        self._off = {layer: _off_switch(layer) for layer in self.layers}
        self._halves = [DualStreamLayer(layer, off=off) for layer, off in self._off.items()]
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

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """The memories (B, T, D) of the "original" or the "tuned" stream."""
        if isinstance(cache, PrefixedCache):
            (cache,) = cache.bodies
        if stream == "tuned" and self.virtual is not None:
            return self.virtual.hidden_states(inputs, cache=cache)
        with self.adapter_disabled() if stream == "original" else nullcontext():
            outputs = self.body(**inputs, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state

    def both_hidden_states(
        self, inputs: dict[str, torch.Tensor], *, cache: DualStreamCache | None
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
                original = self.hidden_states(inputs, stream="original", cache=first)
            return original, self.hidden_states(inputs, stream="tuned", cache=second)
        both = {name: torch.cat([value, value]) for name, value in inputs.items()}
        body_cache = None if cache is None else cache.bodies[0]
        with self.dual_stream():
            outputs = self.body(**both, past_key_values=body_cache, use_cache=cache is not None)
        original, tuned = outputs.last_hidden_state.chunk(2)
        return original, tuned

    def copy_capabilities(self, other: StreamRunner) -> None:
        """Run doubled batches as ``other`` does, whose layers these are: it was probed."""
        self.doubled = other.doubled
        for halves, known in zip(self._halves, other._halves, strict=True):
            halves.shares = known.shares

    def disable_sharing(self) -> None:
        """From now on each half of a doubled batch reads an adapted layer's weight for itself."""
        for halves in self._halves:
            halves.shares = False

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The adapter is off: the body is the original model, bit for bit (DESIGN, invariant 2)."""
        with ExitStack() as stack:
            for off in self._off.values():
                stack.enter_context(off())
            yield

    @contextmanager
    def dual_stream(self) -> Iterator[None]:
        """A batch of 2B rows: the first half runs as the original model, the second as the tuned.

        Right for every tuner layer: its base layer sees the original half, the layer itself the
        tuned half; all other weights are read once for both (`imsm.models.siamese.dual_forward`).
        """
        with ExitStack() as stack:
            for halves in self._halves:
                stack.enter_context(halves.patched())
            yield


def _off_switch(layer: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes blocks in which an adapted layer is what it stands around."""
    if isinstance(layer, _ADAPTED_ATTENTION):  # it has no switch
        return partial(patched_forward, layer, layer.model.forward)
    # experts have a layer around a layer for each weight, trained tokens one inside a wrapper
    return partial(_flipped, [each for each in layer.modules() if hasattr(each, SWITCH)])


@contextmanager
def _flipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    before = [getattr(each, SWITCH) for each in layers]
    for each in layers:
        setattr(each, SWITCH, True)
    try:
        yield
    finally:
        for each, was in zip(layers, before, strict=True):
            setattr(each, SWITCH, was)
