"""Options that change bits: what they change, by how much, and that nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training import acceleration
from imsm.training.acceleration import accelerated, compiled_layers
from imsm.training.train_step import model_inputs
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import tiny_siamese
from tests.training.tiny_run import tiny_examples


def batch() -> dict[str, torch.Tensor]:
    return model_inputs(torch.device("cpu"), tiny_examples()[:5], pad_id=0, hidden_state_cache=None)


def gradients(model: SiameseForCausalLM) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: dict(module.__dict__) for name, module in model.named_modules()}


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_layers_give_the_loss_and_run_in_training_alone(checkpointing: bool) -> None:
    model = tiny_siamese().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    loss, expected = gradients(model)
    before = attributes(model)
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        calls.append("compiled")
        return graph.forward

    with compiled_layers(model, backend=backend):
        found, others = gradients(model)
        count = len(calls)
        assert count >= 2  # with and without the adapter
        gradients(model)
        model.eval()
        with torch.no_grad():
            model(torch.tensor([[5, 6, 7]]), query_mask=torch.ones(1, 2))
        assert len(calls) == count
        model.train()
    torch.testing.assert_close(found, loss)
    for one, other in zip(others, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert attributes(model) == before


def test_adapter_products_in_the_backbones_precision() -> None:
    model = tiny_siamese(dtype=torch.bfloat16).train()
    loss, expected = gradients(model)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    before = attributes(model)
    products: list[torch.dtype] = []
    linear = torch.nn.functional.linear

    def recorded(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        products.append(weight.dtype)
        return linear(rows, weight, bias)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch.nn.functional, "linear", recorded)
    with accelerated(model, adapter_precision="backbone"):
        found, others = gradients(model)
    patch.undo()
    # the gate's products alone are in float32
    assert products.count(torch.float32) < products.count(torch.bfloat16) / 8
    torch.testing.assert_close(found, loss, atol=0, rtol=2e-2)
    for one, other in zip(others, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.1 * other.norm()
    assert attributes(model) == before
    assert torch.equal(gradients(model)[0], loss)


def test_adapter_precision_needs_lora() -> None:
    with (
        pytest.raises(UserError, match=r"^trainer\.adapter_precision=backbone: .* no LoRA matrices"),
        accelerated(tiny_siamese(method="ia3"), adapter_precision="backbone"),
    ):
        pass


def test_ligers_kernels_need_the_package_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "is_liger_kernel_available", lambda: False)
    use = partial(accelerated, tiny_siamese(), liger_kernel=True)
    with pytest.raises(UserError, match=r"^trainer\.liger_kernel=true: .*pip install 'imsm\[liger\]'"), use():
        pass
    monkeypatch.setattr(acceleration, "is_liger_kernel_available", lambda: True)
    with pytest.raises(UserError, match=r"^trainer\.liger_kernel=true: .*need a GPU"), use():
        pass


def test_ligers_kernels_are_removed_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger replaces the classes of the model's Python module, and methods of the model's modules."""
    model = tiny_siamese().train()
    before, mlp = attributes(model), modeling_llama.LlamaMLP

    def apply(backbone: nn.Module, options: dict[str, bool]) -> None:
        modeling_llama.LlamaMLP = nn.Identity  # type: ignore[misc]
        for layer in backbone.model.layers:
            layer.mlp.__dict__["forward"] = lambda rows: 0 * rows
            layer.input_layernorm.variance_epsilon = 0.1
            layer.input_layernorm.casting_mode = "llama"

    monkeypatch.setattr(acceleration, "apply_liger_kernel", apply)
    monkeypatch.setattr(acceleration, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(SiameseForCausalLM, "device", torch.device("cuda"))
    loss, _ = gradients(model)
    with accelerated(model, liger_kernel=True):
        assert not torch.equal(gradients(model)[0], loss)
        model.eval()
    assert not model.training
    model.train()
    assert modeling_llama.LlamaMLP is mlp
    assert attributes(model) == before
    assert torch.equal(gradients(model)[0], loss)
