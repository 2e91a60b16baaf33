"""LoRAMoE: layer equation, streams, sizes, saving and loading, balancing constraint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from imsm.config.schema import PeftConfig
from imsm.data.batching import collate_training, training_order
from imsm.models.adapters.base import adapter_from_config, attach_adapter
from imsm.models.adapters.loramoe import BalancingLossCallback, LoraMoeConfig, LoraMoeLinear, localized_imbalance
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from imsm.utils.manifest import write_manifest
from imsm.utils.options import load_option
from tests.models.adapters.moe import (
    EXPERTS,
    MLP,
    as_numpy,
    gates_in_numpy,
    imbalance_in_numpy,
    layers_of,
    output_in_numpy,
    tiny_loramoe,
)
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
from tests.training.tiny_run import TinyRun, tiny_examples

TYPES = [0, 1, 0]
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
def test_the_layer_equals_a_loop_over_experts(bias: bool, per_expert: bool) -> None:
    layer = one_layer(bias=bias, per_expert_dropout=per_expert, lora_dropout=0.5)
    for shape in ((2, 6, 7), (4, 7), (7,)):
        rows = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = output_in_numpy(layer, rows)
        np.testing.assert_allclose(as_numpy(layer(rows)), expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected - as_numpy(layer.base_layer(rows))).max() > 0.1


def test_dropout_masks_are_shared_or_drawn_per_expert() -> None:
    """With one input, a dropout of 1/2 leaves each expert its whole update or nothing of it."""
    for per_expert, patterns in ((False, 2), (True, 4)):
        base = nn.Linear(1, 2, bias=False)
        layer = layer_around(base, num_experts=2, r=1, lora_alpha=1, lora_dropout=0.5, per_expert_dropout=per_expert)
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


def test_a_new_adapter_changes_nothing_and_is_float32() -> None:
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
    names = {n.removeprefix("adapted.base_model.model.").replace(".base_layer", "") for n in by_name}
    assert names == {n for n, _ in plain.named_parameters()}  # one copy of the weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_dual_stream_batch_equals_two_passes(architecture: str) -> None:
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
        ({"peft_type": "UNKNOWN", "python_module": "imsm.models.adapters.patterns"}, "does not register"),
        ({"peft_type": "UNKNOWN", "python_module": "imsm.nowhere"}, "imsm.nowhere"),
        ({"peft_type": "UNKNOWN", "python_module": None}, "UNKNOWN"),
        ({"num_experts": 5}, "cannot be loaded"),
        ({"target_modules": [*MLP, "q_proj"]}, "no base_model.*q_proj"),
    ],
)
def test_loading_rejects_a_mismatching_adapter_folder(change: dict, message: str, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path / "backbone")
    source = {"name_or_path": str(tmp_path / "backbone"), "dtype": "float32"}
    model = tiny_siamese("llama", tiny_loramoe(), gate=None, source=source)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_manifest(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        SiameseForCausalLM.from_pretrained(tmp_path / "model")


def count(adapter_option: str, shape: dict, modules: Sequence[str] = MLP) -> int:
    """Trainable parameters of a shipped option on a Llama of a shape, without weights."""
    values = load_option("peft", adapter_option)
    arguments = {key: value for key, value in values.items() if key not in PeftConfig.model_fields}
    adapter = adapter_from_config(arguments.pop("_target_"), arguments, modules)
    config = AutoConfig.for_model("llama", **shape)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    adapted = attach_adapter(adapter, backbone)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_parameter_count_on_llama2() -> None:
    assert count("loramoe", LLAMA2) == 51_314_688  # 51.3M


def test_the_matched_lora_has_the_nearest_rank() -> None:
    per_rank = 3 * 32 * (4096 + 11008)
    matched, wanted = count("loramoe_matched_lora", LLAMA2), count("loramoe", LLAMA2)
    assert matched == 35 * per_rank
    assert abs(matched - wanted) <= per_rank / 2
    matched, wanted = (count(o, MINIATURE, ALL) for o in ("loramoe_matched_lora", "loramoe"))
    assert 0.98 * wanted < matched < wanted


def test_invalid_settings_and_targets_are_rejected() -> None:
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


def test_any_linear_layer_can_be_a_target() -> None:
    model = tiny_siamese("qwen2", tiny_loramoe(target_modules=["q_proj", "o_proj"]))  # q has a bias
    assert {type(layer.base_layer) for layer in layers_of(model)} == {nn.Linear}
    assert len(layers_of(model)) == 6


def balanced(*, gate: dict | None = QUERY_GATE, **changes: object) -> tuple[SiameseForCausalLM, BalancingLossCallback]:
    adapter = tiny_loramoe(**changes)
    model = tiny_siamese("llama", adapter, gate=gate).train()
    assert adapter.callbacks is not None
    callbacks = adapter.callbacks(model.adapted, 10)
    assert isinstance(callbacks, BalancingLossCallback)
    return model, callbacks


def batch(side: str = "right") -> dict[str, torch.Tensor]:
    ids, mask = padded(prompts(), side=side)
    labels = ids.where((mask.cumsum(1) > 4) & mask.bool(), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def auxiliary(
    model: SiameseForCausalLM, callbacks: BalancingLossCallback, inputs: dict[str, torch.Tensor], types: list[int]
) -> torch.Tensor:
    callbacks.before_forward(inputs["attention_mask"], torch.tensor(types))
    model(**inputs)
    return callbacks.auxiliary_loss()


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("types", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
def test_the_constraint_equals_its_formula(delta: float, types: list[int]) -> None:
    mass = torch.rand(5, 3, 6, generator=torch.Generator().manual_seed(4)) + 0.1
    found = localized_imbalance(mass, torch.tensor(types), delta=delta)
    expected = [imbalance_in_numpy(each.numpy(), types, delta=delta) for each in mass]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_minimum_routes_less_to_the_half_of_a_type() -> None:
    """As the formula has it: (1 - delta) / (1 + delta), whatever the halves are called."""
    mass = torch.tensor([[[0.9, 0.9, 1.1, 1.1], [1.1, 1.1, 0.9, 0.9]]])
    tilted = localized_imbalance(mass, torch.tensor([1, 0]), delta=0.1)
    even = localized_imbalance(torch.ones_like(mass), torch.tensor([1, 0]), delta=0.1)
    other = localized_imbalance(mass, torch.tensor([0, 1]), delta=0.1)
    assert tilted < 1e-3 < even < other


@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_constraint_of_a_forward_pass(gate: dict | None, mask_padding: bool, side: str) -> None:
    model, callbacks = balanced(gate=gate, mask_padding=mask_padding)
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers_of(model)):
        layer.base_layer.register_forward_hook(  # the last pass is the tuned stream's
            lambda _, given, __, index=index: seen.__setitem__(index, given[0])
        )
    inputs = batch(side)
    found = auxiliary(model, callbacks, inputs, TYPES)
    expected = 0.0
    counted = inputs["attention_mask"].numpy() if mask_padding else 1.0
    for index, layer in enumerate(layers_of(model)):
        gates = gates_in_numpy(layer, seen[index])
        mass = (gates * np.broadcast_to(counted, gates.shape[:2])[..., None]).sum(1)
        expected += 0.5 * imbalance_in_numpy(mass, TYPES, delta=0.1)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert len(seen) == 9


def test_padding_counts_only_without_mask_padding() -> None:
    for mask_padding in (True, False):
        model, callbacks = balanced(mask_padding=mask_padding)
        inputs = batch()
        wider = {
            name: torch.nn.functional.pad(value, (0, 5), value=-100 if name == "labels" else 0)
            for name, value in inputs.items()
        }
        narrow, wide = (auxiliary(model, callbacks, each, TYPES) for each in (inputs, wider))
        assert torch.isclose(narrow, wide, rtol=1e-5) == mask_padding


def test_task_types_matter_only_with_delta() -> None:
    for delta, matters in ((0.1, True), (0.0, False)):
        model, callbacks = balanced(blc_alpha=delta)
        losses = [auxiliary(model, callbacks, batch(), types).item() for types in (TYPES, [1, 0, 0])]
        assert (losses[0] != losses[1]) == matters


@pytest.mark.parametrize("gate", [QUERY_GATE, None], ids=["imsm", "peft"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(gate: dict | None, dropout: float) -> None:
    gradients, losses = [], []
    for checkpointing in (False, True):
        model, callbacks = balanced(gate=gate, lora_dropout=dropout, per_expert_dropout=True)
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = batch()
        torch.manual_seed(3)
        for _ in range(2):  # a second micro-batch begins anew
            callbacks.before_forward(inputs["attention_mask"], torch.tensor(TYPES))
            loss = model(**inputs).loss
            added = callbacks.auxiliary_loss()
            (loss + added).backward()
        losses.append((loss.item(), added.item()))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, **CLOSE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_constraint_has_router_gradients_only_before_the_last_layer(checkpointing: bool) -> None:
    model, callbacks = balanced()
    if checkpointing:
        model.activation_checkpointing_enable()
    auxiliary(model, callbacks, batch(), TYPES).backward()
    for layer in layers_of(model):
        assert layer.router.grad is not None
        assert layer.router.grad.abs().max() > 0
    last = layers_of(model)[-1]
    assert last.up.grad is None or not last.up.grad.any()


def test_other_passes_are_not_recorded() -> None:
    model, callbacks = balanced()
    inputs = batch()
    expected = auxiliary(model, callbacks, inputs, TYPES)
    model.eval()
    model.generate(torch.tensor(prompts()[:1]), max_new_tokens=3)  # doubled passes
    model.train()
    model(torch.tensor([[5, 6, 7]]), query_mask=torch.ones(1, 2))  # another shape, in training
    assert torch.equal(auxiliary(model, callbacks, inputs, TYPES), expected)
    with pytest.raises(RuntimeError, match="no layer recorded its routing"):
        callbacks.auxiliary_loss()


def test_reentrant_checkpointing_is_rejected() -> None:
    model, callbacks = balanced(gate=None)
    model.activation_checkpointing_enable({"use_reentrant": True})
    inputs = batch()
    callbacks.before_forward(inputs["attention_mask"], torch.tensor(TYPES))
    with pytest.raises(RuntimeError, match="reentrant"):
        model(**inputs)
        callbacks.auxiliary_loss()


def test_a_layer_that_receives_some_tokens_only_is_rejected() -> None:
    model, callbacks = balanced()
    inputs = batch()
    callbacks.before_forward(inputs["attention_mask"][:, :-1], torch.tensor(TYPES))
    with pytest.raises(UserError, match=r"peft\.blc_weight=0"):
        model(**inputs)


def test_flattened_tokens_are_assigned_to_their_examples() -> None:
    model, callbacks = balanced()
    layer = layers_of(model)[0]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(1))
    masses = []
    for shaped in (rows, rows.flatten(0, 1)):
        callbacks.before_forward(mask, torch.tensor([0, 1]))
        layer(shaped)
        masses.append(callbacks.routing.close())
    assert masses[0].shape == (1, 2, EXPERTS)
    torch.testing.assert_close(masses[1], masses[0])
    torch.testing.assert_close(masses[0].sum(-1), torch.tensor([[2.0, 3.0]]))


def test_training_the_constraint_balances_the_routing() -> None:
    model, callbacks = balanced(gate=None)
    optimizer = torch.optim.Adam([layer.router for layer in layers_of(model)], lr=0.05)
    losses = []
    for _ in range(15):
        loss = auxiliary(model, callbacks, batch(), TYPES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_a_step_adds_the_mean_over_micro_batches(micro: int, tmp_path: Path) -> None:
    """However a batch is cut, the cross-entropy is the same; the constraint is the parts' mean."""
    run = TinyRun(tmp_path, method="loramoe_without_dropout", micro_batch_size=micro, num_epochs=1)
    assert isinstance(run.callbacks, BalancingLossCallback)
    first = [tiny_examples()[i] for i in training_order(12, batch_size=4, seed=7, epoch=0)[0]]
    expected, cross_entropy = 0.0, 0.0
    run.model.train()
    for start in range(0, 4, micro):
        part = first[start : start + micro]
        inputs = collate_training(part, pad_id=0)
        run.callbacks.before_forward(inputs["attention_mask"], torch.tensor([e.task_type for e in part]))
        labels = sum(len(each.answer_ids) for each in first)
        cross_entropy += run.model(**inputs, num_items_in_batch=labels).loss.item()
        expected += run.callbacks.auxiliary_loss().item() * micro / 4
    run.train()
    assert run.auxiliary_losses[0] == pytest.approx(expected, rel=1e-5)
    assert run.losses[0] == pytest.approx(cross_entropy, rel=1e-5)
    whole = TinyRun(tmp_path / "whole", method="loramoe_without_dropout", micro_batch_size=4, num_epochs=1)
    whole.train()
    assert run.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    assert (run.auxiliary_losses[0] != pytest.approx(whole.auxiliary_losses[0], rel=1e-3)) == (micro < 4)
