"""The two streams of a siamese model: one set of weights, the adapter off or on.

`PeftModel.disable_adapter()` walks the whole model at every entry and makes frozen adapters
trainable again at every exit. Here the tuner layers are found once and their switch is flipped,
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

Stream = Literal["original", "tuned", "interwoven"]
STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")


def tuner_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that an adapter changes, outermost ones only."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside or not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        found.append(module)
        inside.update(id(child) for child in module.modules())
    return found


class Streams:
    """Runs a body as the original model, as the tuned one, or as both in one batch.

    Outside a ``with`` block the adapter is on: gradient checkpointing recomputes the tuned stream
    during the backward pass, long after the block is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = tuner_layers(model)

    @contextmanager
    def original(self) -> Iterator[None]:
        """The adapter is off: the body is the original model, bit for bit (DESIGN, invariant 2)."""
        self._switch(disabled=True)
        try:
            yield
        finally:
            self._switch(disabled=False)

    @contextmanager
    def both(self) -> Iterator[None]:
        """A batch of 2B rows: the first half runs as the original model, the second as the tuned.

        Right for every tuner layer: its base layer sees the original half, the layer itself the
        tuned half; all other weights are read once for both.
        """
        plain = [layer.forward for layer in self.layers]
        for layer, forward in zip(self.layers, plain, strict=True):
            layer.forward = partial(_both_halves, layer, forward)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _switch(self, *, disabled: bool) -> None:
        for layer in self.layers:
            layer._disable_adapters = disabled  # type: ignore[assignment]


def _both_halves(
    layer: nn.Module, tuned: Callable[..., Any], rows: torch.Tensor, *arguments: Any, **named: Any
) -> torch.Tensor:
    """One tuner layer over (2B, ...) rows; other arguments are handed on as they came."""
    original_rows, tuned_rows = rows.chunk(2)
    layer._disable_adapters = True  # type: ignore[assignment]
    original_half = tuned(original_rows, *arguments, **named)
    layer._disable_adapters = False  # type: ignore[assignment]
    return torch.cat([original_half, tuned(tuned_rows, *arguments, **named)])
