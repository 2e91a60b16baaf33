"""Heads that scale or cap logits, and decoders under other attribute names."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from imsm.models.adapters.base import attach_adapter
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.adapters import lora
from tests.models.siamese.tiny import (
    COMMON,
    QUERY_GATE,
    decoded,
    padded,
    perturb,
    prompts,
    tiny_backbone,
    tiny_siamese,
)

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
def test_head_equals_the_backbones_own(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **HEADS[kind]})
    backbone = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    ids = torch.randint(3, 97, (2, 7))
    plain = backbone(ids).logits
    hidden = backbone(ids, output_hidden_states=True).hidden_states[-1]
    projected = backbone.get_output_embeddings()(hidden)
    special = kind in ("cohere", "granite", "gemma2")
    assert torch.allclose(plain, projected, atol=1e-4) != special  # detects a bare projection

    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    adapter = lora(target_modules=targets, r=2, lora_alpha=4, lora_dropout=0.0)
    configuration = SiameseConfig(text_config=config, backbone={"name_or_path": kind}, stream="original")
    model = SiameseForCausalLM(configuration, attach_adapter(adapter, backbone)).eval()
    perturb(model)
    assert torch.equal(model(ids).logits, plain)
    model.stream = "tuned"
    tuned = model.adapted(ids).logits
    assert torch.equal(model(ids).logits, tuned)
    assert not torch.allclose(tuned, plain, atol=1e-3)


@torch.no_grad()
def test_absolute_positions_are_counted_without_padding() -> None:
    """Learned absolute positions, unlike rotary ones, reveal a shift."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **{**COMMON, **HEADS["gpt2"]})
    backbone = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    backbone.transformer.wpe.weight.mul_(30)
    adapter = lora(target_modules=["c_attn"], r=2, lora_alpha=4, lora_dropout=0.0)
    gate = build_gate(hidden_size=32, **QUERY_GATE)
    model = SiameseForCausalLM(SiameseConfig(text_config=config), attach_adapter(adapter, backbone), gate)
    perturb(model.eval())
    rows = prompts()
    alone = [model(torch.tensor([row]), query_mask=torch.ones(1, len(row))).logits for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side=side)
        logits = model(ids, attention_mask=mask, query_mask=mask).logits
        for row, expected in enumerate(alone):
            real = logits[row][mask[row].bool()]
            torch.testing.assert_close(real, expected[0], atol=1e-5, rtol=1e-5)
    ids, mask = padded(rows, side="left")
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, answer in zip(rows, together[:, ids.shape[1] :].tolist(), strict=True):
        single = decoded(model, row, max_new_tokens=6)
        assert answer == single + [0] * (len(answer) - len(single))


def test_backbone_that_bypasses_its_decoder_is_rejected() -> None:
    backbone = tiny_backbone("llama")
    with pytest.raises(RuntimeError, match="called its Identity 0 times"):
        apply_lm_head(backbone, torch.nn.Identity(), torch.zeros(1, 2, 32))


@torch.no_grad()
def test_head_receives_contiguous_rows() -> None:
    """For strided rows torch on a CPU would copy the head's weight for each of them."""
    model = tiny_siamese()
    contiguous: list[bool] = []
    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_pre_hook(lambda _, given: contiguous.append(given[0].is_contiguous()))
    ids, mask = padded(prompts(), side="left")
    for stream in model.available_streams():
        model.stream = stream
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    assert len(contiguous) == 6 and all(contiguous)
