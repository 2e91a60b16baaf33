"""Backbones that would silently give wrong results are rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from imsm.models.backbones.loading import disable_dropout
from imsm.models.siamese.backbone_check import check_backbone
from imsm.utils.errors import UserError
from scripts.compatibility.tiny_models import tiny_backbone, tiny_configuration

UNSUITABLE = [
    ("bert", {}, "a later token changes earlier hidden states.*is_decoder=true"),
    ("xlnet", {}, "a later token changes earlier hidden states"),
    ("roberta", {"is_decoder": True}, "positions do not count from 0"),
    ("bart", {}, "padding changes its hidden states"),
    ("rwkv", {}, "padding changes its hidden states"),
    ("prophetnet", {"is_decoder": True}, "its head needs more"),
]
RANDOM: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "gptj": {"attn_pdrop": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "bloom": {"hidden_dropout": 0.3},
    "gpt_neo": {"resid_dropout": 0.3, "attention_dropout": 0.3},
    "llama": {"attention_dropout": 0.3},
    "phi": {"resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "seed_oss": {"residual_dropout": 0.3},
    "stablelm": {"hidden_dropout": 0.3},
    "mixtral": {"router_jitter_noise": 0.3},
    "phimoe": {"input_jitter_noise": 0.3, "router_jitter_noise": 0.3},
}
"""Sources of randomness in training mode: attention, residuals, embeddings, layers, routers."""


@pytest.mark.parametrize(("name", "overrides", "reason"), UNSUITABLE)
def test_unsuitable_backbone_is_rejected_with_a_reason(name: str, overrides: dict[str, Any], reason: str) -> None:
    backbone = tiny_backbone(tiny_configuration(name, **overrides))
    with pytest.raises(UserError, match=f"^backbone={type(backbone).__name__}: .*{reason}"):
        check_backbone(backbone)


@pytest.mark.parametrize("name", ["bert", "electra", "rembert"])
def test_encoder_configured_as_decoder_is_accepted(name: str) -> None:
    assert check_backbone(tiny_backbone(tiny_configuration(name, is_decoder=True))).supports_cache


@pytest.mark.parametrize("name", RANDOM)
def test_disable_dropout_removes_every_source_of_randomness(name: str) -> None:
    def passes(model: PreTrainedModel) -> list[torch.Tensor]:
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            return [model.train()(ids, use_cache=False).logits for _ in range(4)]

    torch.manual_seed(0)
    random_model = AutoModelForCausalLM.from_config(tiny_configuration(name, **RANDOM[name]))
    first, *others = passes(random_model)
    assert not all(torch.equal(first, other) for other in others)
    with pytest.raises(UserError, match="training mode is not deterministic"):
        check_backbone(random_model)
    disable_dropout(random_model)
    repeated = [*passes(random_model), random_model.eval()(torch.arange(5, 25)[None], use_cache=False).logits]
    assert all(torch.equal(repeated[0], other) for other in repeated)
    check_backbone(random_model)


def test_check_restores_mode_and_weights() -> None:
    backbone = tiny_backbone(tiny_configuration("qwen3")).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert check_backbone(backbone).supports_cache
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert check_backbone(backbone.to(torch.bfloat16).eval()).supports_cache
    assert not backbone.training
