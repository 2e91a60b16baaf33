"""The update of a LoRA layer, added where it belongs: on the tuned half of a doubled batch.

PEFT computes W x + s B A x with a tensor of all outputs for each of product, scaling and sum. Where
nothing is learned, one product that adds to what is there does all three.

Legend: N rows of the tuned stream (tokens), r rank, s scaling.
"""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Linear
from torch import nn


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
