"""The two streams of a siamese model: one set of weights, the adapter off or on.

`PeftModel.disable_adapter()` walks the whole model at every entry and makes frozen adapters
trainable again at every exit. Here the tuner layers are found once and their switch is flipped,
nothing else.

Legend: B batch, T positions, D width of a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Cache

Stream = Literal["original", "tuned", "interwoven"]
STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")


def tuner_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that an adapter changes, outermost ones only."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        tuner = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        tuner = tuner or getattr(type(module), "adapter_layer", False)  # a method of our own
        if not tuner or id(module) in inside:
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
    """

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        self.layers = tuner_layers(model)
        self.body = body

    def memory(
        self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None
    ) -> torch.Tensor:
        """The memories (B, T, D) of the "original" or the "tuned" stream."""
        with self.original() if stream == "original" else nullcontext():
            outputs = self.body(**inputs, past_key_values=cache, use_cache=cache is not None)
        return outputs.last_hidden_state

    def memories(
        self, inputs: dict[str, torch.Tensor], *, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams' memories, each (B, T, D): one pass over doubled rows, or two for gradients.

        A doubled pass would keep activations of both halves, and a checkpointed layer would be
        recomputed as if it were not doubled. The original memory never has a gradient.
        """
        if cache is None and torch.is_grad_enabled():
            with torch.no_grad():
                original = self.memory(inputs, stream="original", cache=None)
            return original, self.memory(inputs, stream="tuned", cache=None)
        doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
        with self.both():
            outputs = self.body(**doubled, past_key_values=cache, use_cache=cache is not None)
        original, tuned = outputs.last_hidden_state.chunk(2)
        return original, tuned

    @contextmanager
    def original(self) -> Iterator[None]:
        """The adapter is off: the body is the original model, bit for bit (DESIGN, invariant 2)."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_switched_off(layer))
            yield

    @contextmanager
    def both(self) -> Iterator[None]:
        """A batch of 2B rows: the first half runs as the original model, the second as the tuned.

        Right for every tuner layer: its base layer sees the original half, the layer itself the
        tuned half; all other weights are read once for both.
        """
        with ExitStack() as stack:
            for layer in self.layers:
                halves = partial(_both_halves, layer, layer.forward)
                stack.enter_context(forward_replaced(layer, halves))
            yield


@contextmanager
def _switched_off(layer: nn.Module) -> Iterator[None]:
    before = layer._disable_adapters
    layer._disable_adapters = True  # type: ignore[assignment]
    try:
        yield
    finally:
        layer._disable_adapters = before


def _both_halves(
    layer: nn.Module, tuned: Callable[..., Any], rows: torch.Tensor, *arguments: Any, **named: Any
) -> torch.Tensor:
    """One tuner layer over (2B, ...) rows; other arguments are handed on as they came."""
    original_rows, tuned_rows = rows.chunk(2)
    with _switched_off(layer):
        original_half = tuned(original_rows, *arguments, **named)
    return torch.cat([original_half, tuned(tuned_rows, *arguments, **named)])
