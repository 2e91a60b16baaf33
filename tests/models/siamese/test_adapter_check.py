"""The adapter check: it changes nothing, and rejects broken methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from imsm.models.adapters.base import AdapterSpec, attach_adapter
from imsm.models.siamese.adapter_check import check_adapter, snapshot
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from imsm.utils.manifest import write_manifest
from tests.models.siamese.tiny import ADAPTERS, ARCHITECTURES, QUERY_GATE, decoded, perturb, prompts, tiny_backbone

LORA = ADAPTERS["lora"]


def siamese(adapted: nn.Module, backbone: PreTrainedModel) -> SiameseForCausalLM:
    gate = build_gate(hidden_size=32, **QUERY_GATE)
    return SiameseForCausalLM(SiameseConfig(text_config=backbone.config), adapted, gate).eval()


def checked(
    attach: Callable[[PreTrainedModel], nn.Module], architecture: str = "llama", **more: Any
) -> SiameseForCausalLM:
    backbone = tiny_backbone(architecture, **more)
    before = snapshot(backbone)
    model = siamese(attach(backbone), backbone)
    check_adapter(model, before)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ADAPTERS)
def test_shipped_methods_pass_and_nothing_is_changed(method: str, architecture: str, dtype: torch.dtype) -> None:
    backbone = tiny_backbone(architecture, dtype=dtype)
    before = snapshot(backbone)
    model = siamese(attach_adapter(ADAPTERS[method](), backbone), backbone).train()
    values = {n: v.clone() for n, v in model.state_dict().items()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    random = torch.get_rng_state()
    check_adapter(model, before)
    assert model.streams.batch_both == (model.streams.virtual_tokens is None)
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert trainable == [n for n, p in model.named_parameters() if p.requires_grad]
    after = model.state_dict()
    assert after.keys() == values.keys()
    assert all(torch.equal(value, after[name]) for name, value in values.items())


def test_a_method_that_stays_enabled_is_rejected() -> None:
    def leaking(backbone: PreTrainedModel) -> nn.Module:
        adapted = attach_adapter(LORA(), backbone)
        layer = backbone.model.layers[1].self_attn.q_proj
        layer.base_layer.register_forward_hook(lambda m, a, output: output * 1.000001)
        return adapted

    with pytest.raises(UserError, match="even with the adapter disabled"):
        checked(leaking)


def test_a_method_that_stays_enabled_in_training_mode_is_rejected() -> None:
    def leaking(backbone: PreTrainedModel) -> nn.Module:
        adapted = attach_adapter(LORA(), backbone)
        layer = backbone.model.layers[1].self_attn.q_proj
        layer.base_layer.register_forward_hook(lambda m, a, out: out * 1.01 if m.training else out)
        return adapted

    with pytest.raises(UserError, match="even with the adapter disabled"):
        checked(leaking)


def test_any_overwritten_weight_is_rejected() -> None:
    def overwriting(backbone: PreTrainedModel) -> nn.Module:
        adapted = attach_adapter(LORA(), backbone)
        backbone.get_input_embeddings().weight.data[1, 3] += 1e-3  # not a token of the test input
        return adapted

    with pytest.raises(UserError, match="overwrites the backbone's weights"):
        checked(overwriting)


def test_an_overwriting_method_that_peft_accepts_is_rejected() -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(UserError, match="even with the adapter disabled"):
        checked(lambda backbone: get_peft_model(backbone, config))


class Attention(nn.Module, BaseTunerLayer):
    """A layer around an attention module, whose KV cache must not be filled twice."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = nn.Parameter(torch.ones(32))
        self._disable_adapters = False

    def forward(self, **arguments: Any) -> tuple[torch.Tensor, ...]:
        output, *rest = self.base_layer(**arguments)
        return (output if self._disable_adapters else output * self.scale, *rest)


def around_attention(backbone: PreTrainedModel) -> nn.Module:
    for layer in backbone.model.layers:
        layer.self_attn = Attention(layer.self_attn)
    return backbone


def test_two_passes_if_a_dual_stream_batch_is_wrong() -> None:
    model = checked(around_attention)
    assert not model.streams.batch_both
    perturb(model)
    for row in prompts():
        assert decoded(model, row) == decoded(model, row, use_cache=False)


class NonCausal(nn.Module, BaseTunerLayer):
    """A layer that attends to later tokens."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = nn.Parameter(torch.zeros(16))
        self._disable_adapters = False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output = self.base_layer(rows)
        if self._disable_adapters:
            return output
        return output + self.scale * output.mean(dim=1, keepdim=True)


def test_a_method_that_is_not_causal_is_rejected() -> None:
    def non_causal(backbone: PreTrainedModel) -> nn.Module:
        attention = backbone.model.layers[0].self_attn
        attention.v_proj = NonCausal(attention.v_proj)
        return backbone

    with pytest.raises(UserError, match="later tokens"):
        checked(non_causal)


def test_a_method_with_code_outside_the_decoder_is_rejected() -> None:
    def outside(backbone: PreTrainedModel) -> nn.Module:
        adapted = attach_adapter(LORA(), backbone)

        def scaled(module: nn.Module, arguments: Any, output: Any) -> Any:
            output.logits = output.logits * 1.1
            return output

        adapted.register_forward_hook(scaled)
        return adapted

    with pytest.raises(UserError, match="outside the decoder"):
        checked(outside)


@pytest.mark.parametrize(
    "config",
    [LoraConfig(target_modules=["lm_head"]), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])],
)
def test_an_adapted_lm_head_is_rejected(config: LoraConfig) -> None:
    with pytest.raises(UserError, match="lm_head"):
        checked(lambda backbone: attach_adapter(AdapterSpec(config), backbone))


def test_trained_tokens_tied_to_the_lm_head_are_rejected() -> None:
    config = TrainableTokensConfig(token_indices=[3, 4])
    with pytest.raises(UserError, match="lm_head"):
        checked(lambda backbone: attach_adapter(AdapterSpec(config), backbone), "qwen2")


def test_the_test_input_contains_trained_tokens() -> None:
    config = TrainableTokensConfig(token_indices=[2, 4])
    backbone = tiny_backbone("llama")
    before = snapshot(backbone, config)
    check_adapter(siamese(attach_adapter(AdapterSpec(config), backbone), backbone), before)


def test_an_adapter_without_effect_is_rejected() -> None:
    config = TrainableTokensConfig(token_indices=[1])  # not passed to the snapshot
    with pytest.raises(UserError, match="changes no hidden state"):
        checked(lambda backbone: attach_adapter(AdapterSpec(config), backbone))


def test_a_saved_adapter_is_checked_when_it_is_loaded(tmp_path: Path) -> None:
    backbone = tiny_backbone("llama")
    backbone.save_pretrained(tmp_path / "backbone")
    model = siamese(attach_adapter(LORA(), backbone), backbone)
    model.config.backbone = {"name_or_path": str(tmp_path / "backbone"), "dtype": "float32"}
    model.config.gate = QUERY_GATE
    model.save_pretrained(tmp_path / "model")
    SiameseForCausalLM.from_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "olora"'))
    write_manifest(tmp_path / "model")
    with pytest.raises(UserError, match="olora"):
        SiameseForCausalLM.from_pretrained(tmp_path / "model")
