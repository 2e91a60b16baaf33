"""4-bit linear layers with one way to compute, whatever the mode.

bitsandbytes chooses a kernel by gradient mode, training mode and device, and each rounds differently: the original
stream, which runs without gradients, would differ from a tuned stream whose adapter is still an identity. Here a
weight is always dequantized and multiplied, in the backward pass again, so that no dequantized weight is kept.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional


def compute_alike_in_all_modes(model: nn.Module) -> None:
    """Make all 4-bit layers of ``model`` `DequantizedLinear4bit`."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # their weights are quantized already, so they are not built anew
            module.__class__ = DequantizedLinear4bit


class DequantizedLinear4bit(Linear4bit):
    """A layer of bitsandbytes that computes ``x @ dequantized(weight).T + bias`` in its compute dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., D_out) of ``x`` (..., D_in), in the dtype of ``x``."""
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        output: torch.Tensor = _DequantizedLinear.apply(x.to(dtype), self.weight, bias)
        return output.to(x.dtype)


class _DequantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
        # not saved for backward: it has no gradient, and its quantization is an attribute
        ctx.weight = weight
        return functional.linear(x, _dequantized(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = grad_outputs
        return gradient @ _dequantized(ctx.weight, gradient.dtype), None, None


def _dequantized(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    dequantized: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dequantized.to(dtype)
