"""One tuner layer over doubled rows: the first half as in the original model, the second as tuned.

Run half by half, a layer reads the weight that it stands around twice. Most layers (LoRA and its
kin, VeRA, DoRA, (IA)^3 behind attention) hand their input to that base layer as it is and work on
what comes out. For those the base layer reads all rows at once: the first half of its output is the
original stream's, the second is what the tuner layer finds when it asks its base layer. Nothing is
known of the method: a layer that asks with anything but its own input gets a computed answer, and
goes half by half from then on (`imsm.models.adapters.adapter_check` has seen to that before the first use). Only
plain LoRA, the most used, has a shorter way where nothing is learned (`imsm.models.siamese.dual_forward`).

Legend: B rows of each stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn


@contextmanager
def patched_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this is open, ``module`` answers every call with ``forward``."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:  # somebody else (accelerate's hooks) had replaced it before
            module.forward = own


def try_add_lora_inplace(layer: nn.Module, output: torch.Tensor, rows: torch.Tensor) -> bool:
    """Add a LoRA layer's update to what its base layer made of its input, in place.

    Args:
        layer: a tuner layer, its adapter on.
        output: of its base layer, (..., D_out); changed if True is returned.
        rows: its input, (..., D_in).

    Returns:
        Whether this was done; False, and nothing is changed, of any layer that does more than a
        plain LoRA on a linear layer does.
    """
    if type(layer) is not Linear or layer.disable_adapters or layer.merged:
        return False
    if len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant:  # variants: DoRA and others
        return False
    down, up = layer.lora_A[name], layer.lora_B[name]
    if not (type(down) is nn.Linear and type(up) is nn.Linear and up.bias is None):
        return False
    dropout = layer.lora_dropout[name]
    still = isinstance(dropout, nn.Identity) or not dropout.training
    whole = len(up.weight) == output.shape[-1]  # ZeRO-3 may hold a part of it
    if not (still and whole and output.is_contiguous()):
        return False
    small = down(rows.to(down.weight.dtype))  # (..., r)
    scaling = layer.scaling[name]
    if up.weight.dtype == output.dtype:
        flat = output.view(-1, output.shape[-1])
        flat.addmm_(small.reshape(-1, small.shape[-1]), up.weight.t(), alpha=scaling)
    else:  # the sum is rounded once, as PEFT rounds it
        output.add_(up(small), alpha=scaling)
    return True


SWITCH = "_disable_adapters"
"""A tuner layer's switch: while it is True the layer is the one that it stands around."""


class DualStreamLayer:
    """The doubled pass of one tuner layer.

    Args:
        layer: it changes what goes through it.
        off: makes a block in which it does not.

    Attributes:
        shares: whether its base layer reads both halves at once.
    """

    def __init__(self, layer: nn.Module, *, off: Callable[[], AbstractContextManager[None]]) -> None:
        self.layer, self._off = layer, off
        base = getattr(layer, "base_layer", None)
        alone = isinstance(base, nn.Module) and not any(hasattr(m, SWITCH) for m in base.modules())
        self._base = base if alone else None  # a tuner layer below is switched with this one
        self.shares = self._base is not None

    @contextmanager
    def patched(self) -> Iterator[None]:
        """While this is open, the layer takes doubled rows."""
        tuned = self.layer.forward

        def doubled(*arguments: Any, **named: Any) -> Any:
            merged = getattr(self.layer, "merged", False)  # its base is no original then
            if self.shares and not merged and len(arguments) == 1 and not named:
                return self._shared(tuned, arguments[0])
            return self._apart(tuned, *arguments, **named)

        with patched_forward(self.layer, doubled):
            yield

    def _shared(self, tuned: Callable[..., Any], rows: torch.Tensor) -> Any:
        """(2B, ...) rows with one pass of the base layer."""
        assert self._base is not None
        plain = self._base.forward
        half = rows.chunk(2)[1]
        both = self._base(rows)
        if not isinstance(both, torch.Tensor):  # a router's choice of experts
            self.shares = False
            return self._apart(tuned, rows)
        middle = len(both) // 2
        rest = both[middle:]  # AdaLoRA adds to it in place
        own = both.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
        in_place = own and not torch.is_grad_enabled()
        if in_place and try_add_lora_inplace(self.layer, rest, half):
            return both
        asked = 0

        def answer(*arguments: Any, **named: Any) -> Any:
            nonlocal asked
            if len(arguments) == 1 and not named and arguments[0] is half:
                asked += 1
                return rest if asked == 1 else plain(half)
            return plain(*arguments, **named)

        with patched_forward(self._base, answer):
            changed = tuned(half)
        self.shares = asked > 0
        alike = changed.shape == rest.shape and changed.dtype == rest.dtype
        if not (in_place and alike):
            return torch.cat([both[:middle], changed])
        rest.copy_(changed)  # a tensor of all rows the less
        return both

    def _apart(self, tuned: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Half by half, over (2B, ...) rows or flattened (2BT, ...).

        Where the rows are all that it is given, each half goes through once. A router or experts
        are given more, and nothing tells which of it goes by rows and which only happens to be as
        long: all of it goes through twice, and of every output the halves are taken.
        """
        if len(arguments) == 1 and not named:
            original_rows, tuned_rows = arguments[0].chunk(2)
            with self._off():
                original = tuned(original_rows)
            return _joined(original, tuned(tuned_rows))
        with self._off():
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
