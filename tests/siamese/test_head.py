"""Heads that do more than a projection, and bodies that lie elsewhere than in `model.model`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from imsm.adapters.adapter import attach
from imsm.adapters.lora import lora
from imsm.siamese.configuration import SiameseConfig
from imsm.siamese.model import SiameseForCausalLM
from tests.siamese.tiny import COMMON, perturb

HEADS = {
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mixtral": {"num_local_experts": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_head_is_the_backbones_own(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **HEADS[kind]})
    backbone = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    ids = torch.randint(3, 97, (2, 7))
    plain = backbone(ids).logits
    hidden = backbone(ids, output_hidden_states=True).hidden_states[-1]
    projected = backbone.get_output_embeddings()(hidden)
    special = kind in ("cohere", "granite", "gemma2")
    assert torch.allclose(plain, projected, atol=1e-4) != special  # the test sees a bare head

    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    adapter = lora(target_modules=targets, rank=2, alpha=4, dropout=0.0)
    configuration = SiameseConfig(text_config=config, backbone={"path": kind}, stream="original")
    model = SiameseForCausalLM(configuration, attach(adapter, backbone)).eval()
    perturb(model)
    assert torch.equal(model(ids).logits, plain)
    model.stream = "tuned"
    tuned = model.adapted(ids).logits
    assert torch.equal(model(ids).logits, tuned)
    assert not torch.allclose(tuned, plain, atol=1e-3)


def test_a_backbone_that_bypasses_its_body_is_refused() -> None:
    from imsm.siamese.head import head_logits
    from tests.siamese.tiny import tiny_backbone

    backbone = tiny_backbone("llama")
    with pytest.raises(RuntimeError, match="cannot be used"):
        head_logits(backbone, torch.nn.Identity(), torch.zeros(1, 2, 32))
