"""What makes a backbone unfit, on real classes: each would give wrong results without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from imsm.models.backbones.loading import disable_dropout
from imsm.models.siamese.backbone_check import check_backbone
from imsm.models.siamese.decoder import find_decoder
from imsm.utils.errors import UserError
from scripts.compatibility.tiny_models import tiny_backbone, tiny_configuration

UNFIT = [
    ("bert", {}, "a later token changes what came before it.*is_decoder=true"),
    ("xlnet", {}, "a later token changes what came before it"),
    ("roberta", {"is_decoder": True}, "positions do not count from 0"),
    ("bart", {}, "padding changes its memories"),
    ("rwkv", {}, "padding changes its memories"),
    ("prophetnet", {"is_decoder": True}, "its head asks for more"),
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
"""Where architectures draw at random: attention, residuals, embeddings, whole layers, routers."""


@pytest.mark.parametrize(("name", "particular", "reason"), UNFIT)
def test_unfit_backbones_are_refused_with_the_reason(name: str, particular: dict[str, Any], reason: str) -> None:
    backbone = tiny_backbone(tiny_configuration(name, **particular))
    with pytest.raises(UserError, match=f"^{type(backbone).__name__} cannot be a backbone: .*{reason}"):
        check_backbone(backbone)


@pytest.mark.parametrize("name", ["bert", "electra", "rembert"])
def test_an_encoder_that_is_told_to_decode_is_fit(name: str) -> None:
    assert check_backbone(tiny_backbone(tiny_configuration(name, is_decoder=True))).supports_cache


@pytest.mark.parametrize("name", RANDOM)
def test_every_random_draw_of_a_frozen_backbone_is_silenced(name: str) -> None:
    def passes(model: PreTrainedModel) -> list[torch.Tensor]:
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            return [model.train()(ids, use_cache=False).logits for _ in range(4)]

    torch.manual_seed(0)
    loud = AutoModelForCausalLM.from_config(tiny_configuration(name, **RANDOM[name]))
    first, *others = passes(loud)
    assert not all(torch.equal(first, other) for other in others)
    with pytest.raises(UserError, match="draw at random"):
        check_backbone(loud)
    disable_dropout(loud)
    quiet = [*passes(loud), loud.eval()(torch.arange(5, 25)[None], use_cache=False).logits]
    assert all(torch.equal(quiet[0], other) for other in quiet)
    check_backbone(loud)


def test_the_mode_is_left_as_it_was_and_nothing_is_changed() -> None:
    backbone = tiny_backbone(tiny_configuration("qwen3")).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert check_backbone(backbone).supports_cache
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert check_backbone(backbone.to(torch.bfloat16).eval()).supports_cache
    assert not backbone.training


def test_a_body_is_what_holds_the_embeddings_not_what_is_called_decoder() -> None:
    modern = tiny_backbone(tiny_configuration("modernbert-decoder"))
    assert modern.get_decoder() is modern.get_output_embeddings()  # by its name
    assert find_decoder(modern) is modern.model
    with_images = tiny_backbone(tiny_configuration("gemma3"))
    assert find_decoder(with_images) is with_images.model.language_model
