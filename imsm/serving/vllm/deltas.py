"""Changes of linear layers in the tuned stream: the second half of the rows.

A change of a layer of transformers is `NAME.delta` (out, in), or its factors `NAME.up` (out, r) and `NAME.down`
(r, in), and `NAME.bias` (out,). vLLM joins some layers, such as q, k and v: changes apply to their part of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PREFIX = "delta."


class Delta(nn.Module):
    """The change of one layer of transformers inside a layer of vLLM.

    Args:
        columns: its part of the output.
        tensors: "delta", or "up" and "down"; "bias".
    """

    delta: torch.Tensor | None
    up: torch.Tensor | None
    down: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, columns: slice, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.columns = columns
        for name in ("delta", "up", "down", "bias"):
            self.register_buffer(name, tensors.get(name), persistent=False)

    def add_to(self, output: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add the change for ``inputs`` (N, in) to ``output`` (N, out)."""
        part = output[:, self.columns]
        if self.down is not None and self.up is not None:
            part += functional.linear(functional.linear(inputs, self.down), self.up)
        if self.delta is not None:
            part += functional.linear(inputs, self.delta)
        if self.bias is not None:
            part += self.bias


class Deltas(nn.ModuleList):
    """The changes of all adapted layers."""

    def attach(
        self, model: nn.Module, tensors: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Add the changes in ``tensors`` to the outputs of the layers of ``model``.

        Raises:
            ValueError: a tensor belongs to no layer.
        """
        packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        joined = {part: (whole, parts.index(part)) for whole, parts in packed.items() for part in parts}
        changes: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, kind = name.removeprefix(PREFIX).rpartition(".")
            changes.setdefault(layer, {})[kind] = tensor.to(device=device, dtype=dtype)
        for layer, change in changes.items():
            parent, _, part = layer.rpartition(".")
            whole, index = joined.get(part, (part, None))
            try:
                module: Any = model.get_submodule(f"{parent}.{whole}")
            except AttributeError as error:
                raise ValueError(f"{layer}: is not a layer of {type(model).__name__}; export the run again") from error
            sizes = [0] if index is None else list(module.output_sizes)
            start = 0 if index is None else sum(sizes[:index])
            columns = slice(None) if index is None else slice(start, start + sizes[index])
            delta = Delta(columns, change)
            self.append(delta)
            module.register_forward_hook(_adder(delta))


def _adder(delta: Delta) -> Any:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        # a pair with the bias, if the caller adds it
        values = output[0] if isinstance(output, tuple) else output
        half = len(values) // 2
        delta.add_to(values[half:], inputs[0][half:])

    return add
