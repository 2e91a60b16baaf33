"""Building adapters from configurations and attaching them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from imsm.models.adapters.adalora import adalora
from imsm.models.adapters.base import AdapterSpec, adapter_errors, adapter_from_config, attach_adapter, freeze_adapter
from imsm.models.siamese.gate import INPUTS, Gate
from imsm.utils.errors import UserError
from tests.helpers.adapters import dora, ia3, lora
from tests.models.siamese.tiny import ADAPTERS, ARCHITECTURES, tiny_backbone

LLAMA3 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 40,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 151936,
}
QUERY_VALUE = ["q_proj", "v_proj"]
SCHEDULE = {"tinit_ratio": 0.1, "tfinal_ratio": 0.3, "deltaT": 10}
QKV = {"target_modules": QUERY_VALUE, "lora_dropout": 0.0}
PAPER = {
    "lora": (LLAMA3, lora(**QKV, r=16, lora_alpha=16), 6815744),
    "lora, Qwen1.5": (QWEN, lora(target_modules=["q_proj"], lora_dropout=0.0, r=16, lora_alpha=16), 3276800),
    "ia3": (LLAMA3, ia3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), 524288),
    "adalora": (
        LLAMA3,
        adalora(**QKV, init_r=12, target_r=8, lora_alpha=16, orth_reg_weight=0.5, **SCHEDULE),
        5112576,  # 5.113M in the paper
    ),
    "dora": (LLAMA3, dora(**QKV, r=16, lora_alpha=32), 6979584),
}


def without_weights(architecture: dict) -> PreTrainedModel:
    arguments = dict(architecture)
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).requires_grad_(False)


@pytest.mark.parametrize("case", PAPER)
def test_parameters_as_in_the_paper(case: str) -> None:
    architecture, adapter, expected = PAPER[case]
    adapted = attach_adapter(adapter, without_weights(architecture))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == expected


def test_the_papers_gate_on_llama3() -> None:
    gate = Gate(hidden_size=4096, inputs=INPUTS, rank=8)
    assert sum(p.numel() for p in gate.parameters()) == 163840


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ADAPTERS)
def test_a_new_adapter_is_the_original_and_float32(architecture: str, method: str) -> None:
    plain = tiny_backbone(architecture, dtype=torch.bfloat16)
    adapted = attach_adapter(ADAPTERS[method](), tiny_backbone(architecture, dtype=torch.bfloat16))
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(adapted(ids).logits, plain(ids).logits, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_methods_that_overwrite_the_backbone_are_rejected(start: str) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=QUERY_VALUE, r=4, init_lora_weights=start)
    with pytest.raises(UserError, match=start):
        attach_adapter(AdapterSpec(config), tiny_backbone("llama"))


def test_missing_target_modules_are_rejected() -> None:
    adapter = lora(target_modules=["query_key_value"], r=2, lora_alpha=2, lora_dropout=0.0)
    with pytest.raises(UserError, match="query_key_value"):
        attach_adapter(adapter, tiny_backbone("llama"))


def test_every_target_must_exist() -> None:
    """PEFT itself requires only one match: (IA)^3 would not adapt keys and values."""
    adapter = lora(target_modules=["down_proj", "qkv_proj"], r=4, lora_alpha=8, lora_dropout=0.0)
    with pytest.raises(UserError, match=r"no module qkv_proj \(its linear layers: down_proj, gate"):
        attach_adapter(adapter, tiny_backbone("llama"))


def test_ia3_scales_inputs_of_feedforward_targets_only() -> None:
    feedforward = {"feedforward_modules": ["down_proj"]}
    adapter = adapter_from_config("peft.IA3Config", feedforward, ["k_proj"])
    assert list(adapter.config.feedforward_modules) == []
    adapter = adapter_from_config("peft.IA3Config", feedforward, ["k_proj", "down_proj"])
    adapted = attach_adapter(adapter, tiny_backbone("llama"))
    shapes = {n.split(".")[-3]: tuple(p.shape) for n, p in adapted.named_parameters() if "ia3" in n}
    assert shapes == {"k_proj": (16, 1), "down_proj": (1, 48)}


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("peft.LoraConfig", {"r": 0}, "peft.r=0: must be at least 1"),
        ("peft.LoraConfig", {"r": True}, "peft.r=true"),
        ("peft.LoraConfig", {"lora_dropout": 1}, "peft.lora_dropout=1: must be less than 1"),
        ("peft.LoraConfig", {"lora_alhpa": 8}, "did you mean peft.lora_alpha=8"),
        ("peft.LoraConfig", {"task_type": "SEQ_CLS"}, "peft.task_type"),
        ("peft.LoraConfig", {"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ("peft.LoraConfg", {}, "did you mean peft.LoraConfig"),
        ("peft.get_peft_model", {"model": None, "peft_config": None}, "peft._target_=peft.get_peft_model"),
        ("peft.OFTConfig", {"r": 4, "oft_block_size": 4}, "OFTConfig"),
        ("peft.PromptTuningConfig", {"num_virtual_tokens": 0}, "peft.num_virtual_tokens=0"),
        ("peft.PromptEncoderConfig", {"encoder_reparameterization_type": "CNN"}, "MLP or LSTM"),
        ("imsm.models.adapters.adalora.adalora_static", {"init_r": 12}, "peft.lora_alpha: is missing"),
    ],
)
def test_invalid_configurations_are_reported_in_one_line(target: str, kwargs: dict[str, Any], message: str) -> None:
    (line,) = [line for line in adapter_errors(target, kwargs, ["q_proj"]) if message in line]
    assert "\n" not in line


def test_a_valid_configuration_becomes_its_peft_config() -> None:
    assert adapter_errors("peft.LoraConfig", {"r": 4, "use_dora": True}, ["q_proj"]) == []
    config: Any = adapter_from_config("peft.LoraConfig", {"r": 4, "use_dora": True}, ["q_proj"]).config
    assert (config.r, config.use_dora, config.target_modules, config.task_type) == (4, True, {"q_proj"}, "CAUSAL_LM")
    prompt: Any = adapter_from_config("peft.PromptTuningConfig", {"num_virtual_tokens": 3}, []).config
    assert prompt.num_virtual_tokens == 3


def test_a_frozen_adapter_stays_in_eval_mode() -> None:
    adapted = attach_adapter(ADAPTERS["lora"](), tiny_backbone("llama"))
    freeze_adapter(adapted)
    assert not adapted.train().training
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
