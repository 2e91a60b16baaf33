"""A siamese ChatGLM3: the model's invariants, against two plain models without cache or mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imsm.models.adapters.base import AdapterSpec, attach_adapter
from imsm.models.backbones.loading import load_backbone
from imsm.models.siamese.backbone_check import check_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.adapters import ia3, lora
from tests.models.backbones.chatglm3 import equations
from tests.models.backbones.chatglm3.checkpoint import PREFIX, published_weights, save_published
from tests.models.siamese.tiny import QUERY_GATE, decoded, padded, perturb

CLOSE = {"atol": 1e-4, "rtol": 1e-5}
WEIGHTS = published_weights()
ROWS = [[401, 403, 7, 99, 310, 5, 266, 31], [401, 403, 55, 8, 17], [401, 403, 12]]
QUERY = 3
ADAPTERS: dict[str, Callable[[], AdapterSpec]] = {
    "lora": lambda: lora(target_modules=["query_key_value"], r=4, lora_alpha=8, lora_dropout=0.0),
    "ia3": lambda: ia3(target_modules=["query_key_value", "dense_4h_to_h"], feedforward_modules=["dense_4h_to_h"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp("chatglm3"))


@pytest.fixture(params=list(ADAPTERS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(folder: Path, method: str) -> SiameseForCausalLM:
    backbone = load_backbone(name_or_path=str(folder))
    torch.manual_seed(12)
    adapted = attach_adapter(ADAPTERS[method](), backbone)
    config = SiameseConfig(text_config=backbone.config, backbone={"name_or_path": str(folder)}, gate=QUERY_GATE)
    siamese = SiameseForCausalLM(config, adapted, build_gate(hidden_size=32, **QUERY_GATE))
    perturb(siamese)
    return siamese.eval()


def merged(model: SiameseForCausalLM) -> equations.Weights:
    """The tuned model's weights under their published names: the adapter multiplied into them."""
    plain = model.adapted.merge_and_unload().state_dict()  # model's adapter is gone after this
    assert plain.keys() == WEIGHTS.keys() - {PREFIX + "rotary_pos_emb.inv_freq"}
    return plain


def interwoven(model: SiameseForCausalLM, tuned: equations.Weights, ids: list[int], query: int) -> torch.Tensor:
    """(T - query + 1, V): the paper's formulas over the equations of two models."""
    original, changed = equations.memory(ids, WEIGHTS), equations.memory(ids, tuned)
    rows = []
    for h_o, h_t in zip(original[query - 1 :], changed[query - 1 :], strict=True):
        pooled = original[:query].mean(0), changed[:query].mean(0)
        inputs = torch.cat([pooled[0], h_o, h_t, pooled[1]])
        gate = torch.sigmoid(model.gate.up.weight @ model.gate.down.weight @ inputs)
        rows.append(gate * h_o + (1 - gate) * h_t)
    return torch.stack(rows) @ WEIGHTS[PREFIX + "output_layer.weight"].T


@torch.no_grad()
def test_the_original_stream_is_the_original_model(model: SiameseForCausalLM, folder: Path) -> None:
    ids, mask = padded(ROWS, side="left")
    plain = load_backbone(name_or_path=str(folder))
    model.stream = "original"
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = plain(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    model.stream = "tuned"
    found = model(ids, attention_mask=mask).logits
    assert not torch.allclose(found, expected, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_equals_two_plain_models(model: SiameseForCausalLM, side: str) -> None:
    ids, mask = padded(ROWS, side=side)
    starts = [0 if side == "right" else ids.shape[1] - len(row) for row in ROWS]
    query = torch.zeros_like(ids)
    for row, start in enumerate(starts):
        query[row, start : start + QUERY] = 1
    found = model(ids, attention_mask=mask, query_mask=query).logits
    tuned = merged(model)
    for row, start in enumerate(starts):
        expected = interwoven(model, tuned, ROWS[row], QUERY)
        here = found[row, start + QUERY - 1 : start + len(ROWS[row])]
        torch.testing.assert_close(here, expected, **CLOSE)


@torch.no_grad()
def test_generate_equals_two_plain_models(model: SiameseForCausalLM) -> None:
    ids, mask = padded(ROWS, side="left")
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    together = model.generate(ids, **options)[:, ids.shape[1] :].tolist()
    alone = [decoded(model, row) for row in ROWS]
    beams = model.generate(ids, num_beams=3, **options)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **options))
    tuned = merged(model)
    for row, batched, single in zip(ROWS, together, alone, strict=True):
        expected = list(row)
        while len(expected) < len(row) + 8 and expected[-1] != 2:
            expected.append(int(interwoven(model, tuned, expected, len(row))[-1].argmax()))
        assert single == expected[len(row) :]
        assert batched == single + [0] * (len(batched) - len(single))


def test_a_training_step_changes_adapter_and_gate_only(model: SiameseForCausalLM) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    ids, mask = padded(ROWS, side="right")
    labels = ids.where(mask.bool() & (torch.arange(ids.shape[1]) >= 2), -100)
    trainable = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.02)
    model.train().activation_checkpointing_enable()
    losses = []
    for _ in range(5):
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    for name, value in model.named_parameters():
        own = "lora_" in name or "ia3_" in name or name.startswith("gate.")
        assert own == value.requires_grad
        assert own != torch.equal(value, before[name]), name


@torch.no_grad()
def test_a_saved_model_generates_the_same(model: SiameseForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = SiameseForCausalLM.from_pretrained(tmp_path)
    assert decoded(again, ROWS[0]) == decoded(model, ROWS[0])
    assert again.config.text_config.model_type == "chatglm"


def test_the_backbone_can_be_interwoven(folder: Path) -> None:
    assert check_backbone(load_backbone(name_or_path=str(folder))).supports_cache  # decoding with a cache too
