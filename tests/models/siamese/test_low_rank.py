"""LoRA's update in one product is PEFT's; a layer that does more than LoRA is left to PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers.pytorch_utils import Conv1D

from imsm.models.siamese.dual_forward import try_add_lora_inplace
from tests.models.siamese.tiny import perturb


def _layer(base: torch.nn.Module | None = None, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    body = torch.nn.Sequential(base or torch.nn.Linear(12, 20))
    config = LoraConfig(target_modules=["0"], r=4, lora_alpha=6, **options)
    layer = inject_adapter_in_model(config, body).eval()[0]
    perturb(layer)
    return layer


def _added(layer: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor | None:
    output = layer.base_layer(rows)
    before = output.clone()
    if try_add_lora_inplace(layer, output, rows):
        return output
    assert torch.equal(output, before)
    return None


@pytest.mark.parametrize("shape", [(2, 3, 12), (5, 12), (1, 1, 12)])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"bias": "lora_only"}])
@torch.no_grad()
def test_the_update_is_pefts(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer = _layer(**options)
    rows = torch.randn(shape)
    added = _added(layer, rows)
    assert added is not None
    torch.testing.assert_close(added, layer(rows))
    assert not torch.allclose(added, layer.base_layer(rows), atol=1e-2)


@torch.no_grad()
def test_a_gpt2_layer_too() -> None:
    layer = _layer(Conv1D(20, 12), fan_in_fan_out=True)
    rows = torch.randn(2, 3, 12)
    torch.testing.assert_close(_added(layer, rows), layer(rows))


@torch.no_grad()
def test_a_float32_adapter_on_a_bfloat16_backbone_rounds_once() -> None:
    layer = _layer(torch.nn.Linear(12, 20, dtype=torch.bfloat16))
    layer.lora_A.float(), layer.lora_B.float()
    rows = torch.randn(64, 12).bfloat16()
    added, peft = _added(layer, rows), layer(rows)
    assert added is not None
    assert added.dtype == torch.bfloat16
    assert (added != peft).float().mean() < 0.01  # PEFT rounds the scaled product in float32 too
    torch.testing.assert_close(added, peft)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
@torch.no_grad()
def test_what_is_more_than_lora_is_left_alone(options: dict[str, Any]) -> None:
    assert _added(_layer(**options), torch.randn(2, 3, 12)) is None


@torch.no_grad()
def test_other_states_of_a_layer_are_left_alone() -> None:
    rows = torch.randn(2, 3, 12)
    training = _layer(lora_dropout=0.5).train()
    assert _added(training, rows) is None
    off = _layer()
    off.enable_adapters(False)
    assert _added(off, rows) is None
    merged = _layer()
    merged.merge()
    assert _added(merged, rows) is None
    two = _layer()
    two.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2))
    two.set_adapter(["default", "other"])
    assert _added(two, rows) is None
