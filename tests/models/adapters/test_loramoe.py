"""LoRAMoE's layer and model: its equation, its two streams, its sizes, saving and loading."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from imsm.models.adapters.base import attach_adapter
from imsm.models.adapters.loramoe import LoraMoeConfig, LoraMoeLinear
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from imsm.utils.instantiate import import_target
from imsm.utils.options import load_option
from tests.models.adapters.moe import MLP, as_numpy, layers_of, output_in_numpy, tiny_loramoe
from tests.models.siamese.tiny import (
    ARCHITECTURES,
    QUERY_GATE,
    decoded,
    marked,
    padded,
    perturb,
    prompts,
    tiny_backbone,
    tiny_siamese,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LLAMA2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
ALL = [*MLP, "q_proj", "k_proj", "v_proj", "o_proj"]
MINIATURE = {**LLAMA2, "hidden_size": 160, "intermediate_size": 432, "num_attention_heads": 4}


def one_layer(*, bias: bool = True, **changes: object) -> LoraMoeLinear:
    torch.manual_seed(1)
    base = nn.Linear(7, 9, bias=bias).requires_grad_(False)
    layer = layer_around(base, num_experts=5, r=3, lora_alpha=12, **changes)
    perturb(layer)
    return layer.eval()


def layer_around(base: nn.Linear, **fields: object) -> LoraMoeLinear:
    layer = LoraMoeLinear(base, "default", LoraMoeConfig(**fields))
    layer.reset_parameters()
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_expert", [True, False])
def test_fused_equals_a_loop_over_experts(bias: bool, per_expert: bool) -> None:
    layer = one_layer(bias=bias, per_expert_dropout=per_expert, lora_dropout=0.5)
    for shape in ((2, 6, 7), (4, 7), (7,)):
        rows = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = output_in_numpy(layer, rows)
        np.testing.assert_allclose(as_numpy(layer(rows)), expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected - as_numpy(layer.base_layer(rows))).max() > 0.1


def test_dropout_masks_are_shared_or_each_experts_own() -> None:
    """With one input, a dropout of 1/2 leaves each expert its whole update or nothing of it."""
    for per_expert, patterns in ((False, 2), (True, 4)):
        base = nn.Linear(1, 2, bias=False)
        layer = layer_around(
            base, num_experts=2, r=1, lora_alpha=1, lora_dropout=0.5, per_expert_dropout=per_expert
        )
        with torch.no_grad():
            layer.router.zero_()
            layer.down.fill_(1.0)
            layer.up.copy_(torch.eye(2))  # expert i answers at place i
        torch.manual_seed(0)
        rows = torch.ones(400, 1)
        update = (layer.train()(rows) - base(rows)).detach()
        assert len(update.round(decimals=3).unique(dim=0)) == patterns
        assert update.mean() == pytest.approx(0.5, abs=0.05)  # dropout keeps the mean
        torch.testing.assert_close(layer.eval()(rows) - base(rows), torch.full((400, 2), 0.5))


def test_a_fresh_layer_changes_nothing_and_is_float32() -> None:
    adapted = attach_adapter(tiny_loramoe(), tiny_backbone("llama", dtype=torch.bfloat16))
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert len(trainable) == 3 * 3 * 3  # router, A, B of three modules in three layers
    plain = tiny_backbone("llama", dtype=torch.bfloat16)
    ids = torch.tensor(prompts()[:1])
    assert torch.equal(adapted(ids).logits, plain(ids).logits)


def test_the_router_is_dense_and_stays_float32_under_autocast() -> None:
    layer = one_layer()
    rows = torch.randn(3, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = layer.gates(rows)
        assert layer(rows).isfinite().all()
    assert gates.dtype == torch.float32
    assert torch.equal(gates, layer.gates(rows))
    assert (gates > 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_original_stream_is_the_backbone(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_siamese(architecture, tiny_loramoe(), dtype=dtype)
    plain = tiny_backbone(architecture, dtype=dtype)
    ids = torch.tensor(prompts()[:1])
    model.stream = "original"
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.stream = "tuned"
    assert not torch.allclose(model(ids).logits, plain(ids).logits, atol=0.1)
    by_name = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    names = {n.replace("adapted.", "", 1).replace(".base_layer", "") for n in by_name}
    assert names == {n for n, _ in plain.named_parameters()}  # one copy of the weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_doubled_batch_equals_two_passes(architecture: str) -> None:
    model = tiny_siamese(architecture, tiny_loramoe())
    ids, mask = padded(prompts(), side="left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model.new_cache()
    kinds = ("original", "tuned")
    caches = {stream: DynamicCache(config=model.config.text_config) for stream in kinds}
    for piece in (slice(0, 9), slice(9, 10), slice(10, 12)):
        inputs = {
            "input_ids": ids[:, piece],
            "attention_mask": mask[:, : piece.stop],
            "position_ids": positions[:, piece],
        }
        both = model.streams.both_hidden_states(inputs, cache=cache)
        real = mask[:, piece].bool()
        for stream, doubled in zip(kinds, both, strict=True):
            alone = model.streams.hidden_states(inputs, stream=stream, cache=caches[stream])
            torch.testing.assert_close(doubled[real], alone[real], **CLOSE)
        assert not torch.allclose(*both, atol=1e-2)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = tiny_siamese("llama", tiny_loramoe())
    rows = prompts()
    queries = [len(row) - 3 for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side=side)
        query_mask = marked(rows, queries, side=side)
        logits = model(ids, attention_mask=mask, query_mask=query_mask).logits
        for row, tokens in enumerate(rows):
            alone = model(torch.tensor([tokens]), query_mask=torch.ones(1, queries[row])).logits[0]
            torch.testing.assert_close(logits[row][mask[row].bool()], alone, **CLOSE)


@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
def test_same_tokens_after_a_round_trip(gate: dict | None, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path / "backbone")
    source = {"name_or_path": str(tmp_path / "backbone"), "dtype": "float32"}
    model = tiny_siamese("llama", tiny_loramoe(), gate=gate, source=source)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    again = SiameseForCausalLM.from_pretrained(folder)
    assert not any(p.requires_grad for p in again.parameters())
    for stream in model.available_streams():
        model.stream = again.stream = stream
        assert decoded(again, prompts()[0]) == decoded(model, prompts()[0])
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    trainable = SiameseForCausalLM.from_pretrained(folder, trainable=True)
    expected = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == expected
    again.save_pretrained(tmp_path / "second")  # a loaded model saves itself again
    for path in sorted(folder.rglob("*.safetensors")):
        assert (tmp_path / "second" / path.relative_to(folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own_method": "os.system"}, "no configuration of a method"),
        ({"own_method": "dataclasses.Field"}, "no configuration of a method"),
        ({"own_method": "imsm.nowhere.Method"}, "cannot be imported"),
        ({"experts": 5}, "cannot be loaded"),
        ({"target_modules": ["gate_proj"]}, "other layers"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_adapter_folder_that_does_not_fit_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path / "backbone")
    source = {"name_or_path": str(tmp_path / "backbone"), "dtype": "float32"}
    model = tiny_siamese("llama", tiny_loramoe(), gate=None, source=source)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        SiameseForCausalLM.from_pretrained(tmp_path / "model")


def count(adapter_option: str, shape: dict, modules: Sequence[str] = MLP) -> int:
    """Trainable parameters of a shipped option on a Llama of a shape, without weights."""
    values = load_option("peft", adapter_option)
    names = inspect.signature(import_target(values["_target_"])).parameters
    arguments = {key: value for key, value in values.items() if key in names}
    adapter = import_target(values["_target_"])(target_modules=list(modules), **arguments)
    config = AutoConfig.for_model("llama", **shape)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    adapted = attach_adapter(adapter, backbone)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_its_size_on_llama2_without_weights() -> None:
    assert count("loramoe", LLAMA2) == 51_314_688  # 51.3M


def test_the_matched_lora_is_as_near_as_a_rank_can_be() -> None:
    per_rank = 3 * 32 * (4096 + 11008)
    matched, wanted = count("loramoe_matched_lora", LLAMA2), count("loramoe", LLAMA2)
    assert matched == 35 * per_rank
    assert abs(matched - wanted) <= per_rank / 2
    matched, wanted = (count(o, MINIATURE, ALL) for o in ("loramoe_matched_lora", "loramoe"))
    assert 0.98 * wanted < matched < wanted


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"peft\.num_experts=7.*blc_weight=0"):
        tiny_loramoe(num_experts=7)
    assert tiny_loramoe(num_experts=7, blc_weight=0.0).callbacks is None
    with pytest.raises(UserError, match="no module query_key_value"):
        attach_adapter(tiny_loramoe(target_modules=["query_key_value"]), tiny_backbone("llama"))
    with pytest.raises(UserError, match="LlamaRMSNorm"):
        attach_adapter(tiny_loramoe(target_modules=["q_proj", "norm"]), tiny_backbone("llama"))
    untouched = tiny_backbone("llama")
    with pytest.raises(UserError, match="LlamaMLP"):
        attach_adapter(tiny_loramoe(target_modules=["q_proj", "mlp"]), untouched)
    assert not layers_of(untouched)


def test_any_linear_layer_will_do() -> None:
    model = tiny_siamese("qwen2", tiny_loramoe(target_modules=["q_proj", "o_proj"]))  # q has a bias
    assert {type(layer.base_layer) for layer in layers_of(model)} == {nn.Linear}
    assert len(layers_of(model)) == 6
