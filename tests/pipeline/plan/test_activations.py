"""Tracing a forward pass on the meta device."""

from __future__ import annotations

import pytest
import torch

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.plan.activations import trace_activations
from tests.models.siamese.tiny import tiny_siamese


@pytest.fixture
def model() -> SiameseForCausalLM:
    return tiny_siamese().to(torch.device("meta")).train()


def test_every_attention_layer_is_recorded_and_the_implementation_restored(model: SiameseForCausalLM) -> None:
    implementation = model.backbone.config._attn_implementation
    trace = trace_activations(model, rows=2, tokens=8, answers=6, fused=True)
    assert len(trace.kv_cache) == model.config.text_config.num_hidden_layers
    assert trace.activations > 0
    assert model.backbone.config._attn_implementation == implementation


def test_activations_grow_with_the_batch_and_eager_attention_saves_more(model: SiameseForCausalLM) -> None:
    def saved(rows: int, *, fused: bool) -> int:
        return trace_activations(model, rows=rows, tokens=64, answers=6, fused=fused).activations

    assert saved(1, fused=True) < saved(4, fused=True)
    model.backbone.set_attn_implementation("eager")
    assert saved(4, fused=True) < saved(4, fused=False)


def test_the_gate_adds_activations(model: SiameseForCausalLM) -> None:
    interwoven = trace_activations(model, rows=2, tokens=8, answers=6, fused=True).activations
    model.stream = "tuned"
    assert trace_activations(model, rows=2, tokens=8, answers=6, fused=True).activations < interwoven
