"""Changes of layers apply to the second half of the rows, in layers that vLLM joins too."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from imsm.serving.vllm.deltas import Deltas


class Joined(nn.Linear):
    """A layer of vLLM for several of transformers, which returns a pair."""

    output_sizes = (4, 2, 2)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return super().forward(inputs), None


class Model(nn.Module):
    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleDict({"qkv_proj": Joined(6, 8), "o_proj": nn.Linear(6, 6)})


def test_changes_apply_to_the_tuned_rows_of_their_layer() -> None:
    torch.manual_seed(0)
    model, inputs = Model(), torch.randn(4, 6)
    qkv, out = model.layer["qkv_proj"](inputs)[0], model.layer["o_proj"](inputs)
    up, down, dense, bias = torch.randn(2, 3), torch.randn(3, 6), torch.randn(6, 6), torch.randn(4)
    tensors = {
        "delta.layer.v_proj.up": up,
        "delta.layer.v_proj.down": down,
        "delta.layer.q_proj.bias": bias,
        "delta.layer.o_proj.delta": dense,
    }
    Deltas().attach(model, tensors, dtype=torch.float32, device=torch.device("cpu"))
    qkv, out = qkv.detach().clone(), out.detach().clone()
    qkv[2:, 6:] += functional.linear(inputs[2:], up @ down)
    qkv[2:, :4] += bias
    out[2:] += functional.linear(inputs[2:], dense)
    with torch.inference_mode():
        torch.testing.assert_close(model.layer["qkv_proj"](inputs)[0], qkv)
        torch.testing.assert_close(model.layer["o_proj"](inputs), out)


def test_a_change_of_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer\.gate_proj: is not a layer of Model"):
        Deltas().attach(
            Model(), {"delta.layer.gate_proj.bias": torch.zeros(6)}, dtype=torch.float32, device=torch.device("cpu")
        )
