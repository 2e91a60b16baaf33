"""LiNeS against weights that are scaled by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from imsm.studies.baselines.methods import lines
from imsm.utils.errors import UserError
from tests.helpers.adapters import lora, prompt_tuning
from tests.models.siamese.tiny import padded, perturb, prompts, tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits

FACTORS = {0: 0.25, 1: 0.625, 2: 1.0}
"""Of alpha = 0.25 in three blocks: 0.25 + 0.75 (l - 1) / 2."""


def adapter() -> object:
    modules = ["q_proj", "down_proj", "embed_tokens"]
    return lora(target_modules=modules, r=4, lora_alpha=8, lora_dropout=0.0)


def test_each_block_has_its_scale() -> None:
    """The embeddings, outside of the blocks, have that of the first block."""
    model = tiny_siamese(method=adapter(), gate=None)
    found = logits(lines.build_model(SimpleNamespace(model=lambda: model), 0.25))
    by_hand = tiny_siamese(method=adapter(), gate=None)  # equal weights
    assert isinstance(by_hand.adapted, PeftModel)
    before = {
        name.replace(".base_layer", ""): value.clone()
        for name, value in by_hand.backbone.named_parameters()
        if not value.requires_grad
    }
    merged = by_hand.adapted.merge_and_unload()
    scaled = set()
    with torch.no_grad():
        for name, value in merged.named_parameters():
            block = int(name.split(".")[2]) if ".layers." in name else 0
            if not torch.equal(value, before[name]):
                scaled.add(name.removesuffix(".weight"))
                value.copy_(before[name] + FACTORS[block] * (value - before[name]))
    parts = ("self_attn.q_proj", "mlp.down_proj")
    assert scaled >= {f"model.layers.{block}.{part}" for block in FACTORS for part in parts} | {"model.embed_tokens"}
    ids, mask = padded(prompts(), side="right")
    with torch.no_grad():
        expected = merged(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_at_one_it_is_the_tuned_model() -> None:
    model = tiny_siamese(gate=None)
    perturb(model)
    original, tuned = both_streams(model)
    run = SimpleNamespace(model=lambda: model)
    assert torch.equal(logits(lines.build_model(run, 1.0)), tuned)
    at_zero = logits(lines.build_model(run, 0.0))
    assert not torch.equal(at_zero, tuned) and not torch.equal(at_zero, original)
    assert lines.INFO.ends == {1.0: "tuned"}


def test_virtual_tokens_are_rejected() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=4), gate=None)
    with pytest.raises(UserError, match=r"^lines: PROMPT_TUNING adds 4 virtual tokens .*; leave lines out"):
        lines.build_model(SimpleNamespace(model=lambda: model), 0.5)
