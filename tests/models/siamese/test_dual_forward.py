"""A dual batch reads each adapted weight once and equals running each half separately."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from imsm.models.siamese import dual_forward
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.dual_forward import (
    DualStreamLayer,
    _plain_lora,
    _try_add_lora_inplace,
    _two_row_linear,
    patched_forward,
)
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_logits
from tests.models.siamese.tiny import ADAPTERS, padded, perturb, prompts, tiny_siamese

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _inputs() -> dict[str, torch.Tensor]:
    ids, mask = padded(prompts(), side="left")
    return {"input_ids": ids, "attention_mask": mask}


def _count_products(model: SiameseForCausalLM) -> tuple[Counter[str], Callable[[], None]]:
    """Count the matrix products with each adapted base weight, by layer name."""
    counts: Counter[str] = Counter()
    names = {layer.base_layer: name for name, layer in _adapted(model)}
    plain = torch.nn.Linear.forward

    def counted(layer: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        if layer in names:
            counts[names[layer]] += 1
        return plain(layer, rows)

    torch.nn.Linear.forward = counted  # type: ignore[method-assign]

    def stop() -> None:
        torch.nn.Linear.forward = plain  # type: ignore[method-assign]

    return counts, stop


def _adapted(model: SiameseForCausalLM) -> list[tuple[str, torch.nn.Module]]:
    modules = model.named_modules()
    return [(name, module) for name, module in modules if hasattr(module, "base_layer")]


@pytest.mark.parametrize("method", ADAPTERS)
@torch.no_grad()
def test_shared_base_layer_equals_separate_halves(method: str) -> None:
    model, inputs = tiny_siamese(method=method), _inputs()
    shared = model.streams.both_hidden_states(inputs, cache=None)
    model.streams.adapter_layers.disable_sharing()
    separate = model.streams.both_hidden_states(inputs, cache=None)
    real = inputs["attention_mask"].bool()
    for one, other in zip(shared, separate, strict=True):
        torch.testing.assert_close(one[real], other[real], **CLOSE)
    assert not torch.allclose(separate[0][real], separate[1][real], atol=1e-2)


@pytest.mark.parametrize(("method", "twice"), [("lora", ()), ("adalora", ()), ("ia3", ("down",))])
@torch.no_grad()
def test_base_layer_runs_once(method: str, twice: tuple[str, ...]) -> None:
    """Except where the adapter changes the layer's input: (IA)^3 in the feed-forward part."""
    model, inputs = tiny_siamese(method=method), _inputs()
    model.streams.both_hidden_states(inputs, cache=None)  # the first pass detects which layers can share
    counts, stop = _count_products(model)
    try:
        model.streams.both_hidden_states(inputs, cache=None)
    finally:
        stop()
    assert counts.keys() == {name for name, _ in _adapted(model)}
    for name, times in counts.items():
        assert times == (2 if any(part in name for part in twice) else 1), name


@torch.no_grad()
def test_base_layer_called_twice_returns_the_same_output() -> None:
    """Although the first output may be changed in place."""

    class CallsBaseTwice(torch.nn.Module, BaseTunerLayer):
        def __init__(self, base_layer: torch.nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            first = self.base_layer(rows)
            if self._disable_adapters:
                return first
            first *= 3
            return first + self.base_layer(rows)

    torch.manual_seed(0)
    layer = CallsBaseTwice(torch.nn.Linear(4, 4))
    rows = torch.randn(2, 3, 4)
    with StreamRunner(layer, layer).adapter_layers.dual():
        both = layer(torch.cat([rows, rows]))
    torch.testing.assert_close(both[:2], layer.base_layer(rows))
    torch.testing.assert_close(both[2:], 4 * layer.base_layer(rows))


def test_gradients_flow_through_a_dual_batch_with_a_cache() -> None:
    gradients = []
    for separate in (False, True):
        model, inputs = tiny_siamese(method="adalora"), _inputs()
        if separate:
            model.streams.adapter_layers.disable_sharing()
        tuned = model.streams.both_hidden_states(inputs, cache=model.new_cache())[1]
        tuned[inputs["attention_mask"].bool()].square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0] and len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@torch.no_grad()
def test_merged_adapter_is_unmerged_for_the_original_stream() -> None:
    model, inputs = tiny_siamese(method="lora"), _inputs()
    expected = model.streams.both_hidden_states(inputs, cache=None)
    model.adapted.merge_adapter()
    real = inputs["attention_mask"].bool()
    for one, other in zip(expected, model.streams.both_hidden_states(inputs, cache=None), strict=True):
        torch.testing.assert_close(one[real], other[real], atol=1e-4, rtol=1e-4)


def test_derived_model_copies_the_capabilities() -> None:
    model = tiny_siamese(method="lora")
    model.streams.adapter_layers.disable_sharing()
    made = build_mixing_model(model, mix_logits(0.5))
    counts, stop = _count_products(model)
    try:
        with torch.no_grad():
            made.streams.both_hidden_states(_inputs(), cache=None)
    finally:
        stop()
    assert set(counts.values()) == {2}


@pytest.mark.parametrize("base", [torch.nn.Identity(), torch.nn.Dropout(0.5), torch.nn.Flatten(0)])
@torch.no_grad()
def test_layer_input_is_not_modified(base: torch.nn.Module) -> None:
    """A base layer may return its input, which the residual connection reads too."""

    class Scaled(torch.nn.Module, BaseTunerLayer):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = base.eval()

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return 3 * self.base_layer(rows)

    layer = Scaled()
    rows = torch.arange(4.0)
    dual_layer = DualStreamLayer(layer, disable=contextlib.nullcontext)  # type: ignore[arg-type]
    with patched_forward(dual_layer.layer, dual_layer.forward_fn()):
        found = layer(rows)
    assert found.tolist() == [0, 1, 6, 9] and dual_layer.shares_base
    assert rows.tolist() == [0, 1, 2, 3]


def _lora_layer(base: torch.nn.Module | None = None, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(base or torch.nn.Linear(12, 20))
    config = LoraConfig(target_modules=["0"], r=4, lora_alpha=6, **options)
    layer = inject_adapter_in_model(config, model).eval()[0]
    perturb(layer)
    return layer


def _added(layer: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor | None:
    output = layer.base_layer(rows)
    before = output.clone()
    lora = _plain_lora(layer)
    if lora is not None and _try_add_lora_inplace(layer, lora, output, rows):
        return output
    assert torch.equal(output, before)
    return None


@pytest.mark.parametrize("shape", [(2, 3, 12), (5, 12), (1, 1, 12)])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"bias": "lora_only"}])
@torch.no_grad()
def test_inplace_lora_equals_peft(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer = _lora_layer(**options)
    rows = torch.randn(shape)
    added = _added(layer, rows)
    assert added is not None
    torch.testing.assert_close(added, layer(rows))
    assert not torch.allclose(added, layer.base_layer(rows), atol=1e-2)


@torch.no_grad()
def test_inplace_lora_on_conv1d() -> None:
    layer = _lora_layer(Conv1D(20, 12), fan_in_fan_out=True)
    rows = torch.randn(2, 3, 12)
    torch.testing.assert_close(_added(layer, rows), layer(rows))


@torch.no_grad()
def test_inplace_lora_in_float32_on_bfloat16_rounds_once() -> None:
    layer = _lora_layer(torch.nn.Linear(12, 20, dtype=torch.bfloat16))
    layer.lora_A.float(), layer.lora_B.float()
    rows = torch.randn(64, 12).bfloat16()
    added, peft = _added(layer, rows), layer(rows)
    assert added is not None
    assert added.dtype == torch.bfloat16
    assert (added != peft).float().mean() < 0.01  # PEFT rounds the scaled product in float32 too
    torch.testing.assert_close(added, peft)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
@torch.no_grad()
def test_inplace_lora_rejects_variants(options: dict[str, Any]) -> None:
    assert _added(_lora_layer(**options), torch.randn(2, 3, 12)) is None


@torch.no_grad()
def test_inplace_lora_rejects_other_layer_states() -> None:
    rows = torch.randn(2, 3, 12)
    training = _lora_layer(lora_dropout=0.5).train()
    assert _added(training, rows) is None
    off = _lora_layer()
    off.enable_adapters(False)
    assert _added(off, rows) is None
    merged = _lora_layer()
    merged.merge()
    assert _added(merged, rows) is None
    two = _lora_layer()
    two.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2))
    two.set_adapter(["default", "other"])
    assert _added(two, rows) is None


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 8), (1, 2, 8), (3, 1, 8), (2, 2, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_of_two_rows_is_the_layers_own(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, rows = torch.nn.Linear(8, 5, bias=bias), torch.randn(shape)
    with torch.no_grad():
        found = _two_row_linear(linear, rows)
        torch.testing.assert_close(found, linear(rows), atol=1e-6, rtol=1e-5)
        assert found.is_contiguous()
        half = linear.to(torch.bfloat16)
        assert torch.equal(_two_row_linear(half, rows.bfloat16()), half(rows.bfloat16()))


def test_every_layer_of_the_decoder_has_its_own_forward_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_forward, "_LARGE", 0)
    model = tiny_siamese().eval()
    hooked = model.backbone.model.layers[0].mlp.up_proj
    hooked.forward = own = hooked.forward
    with torch.no_grad(), model.streams.adapter_layers.dual():
        assert "forward" in model.backbone.model.layers[0].mlp.down_proj.__dict__
        assert hooked.forward is own  # a hook that moves its weights
    patched = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert patched == ["adapted.base_model.model.model.layers.0.mlp.up_proj"]
    with model.streams.adapter_layers.dual():
        assert "forward" not in model.backbone.model.layers[0].mlp.down_proj.__dict__


def test_a_step_of_one_prompt_gives_the_logits_of_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_forward, "_LARGE", 0)
    rows = prompts(1)
    for method in ADAPTERS:
        model = tiny_siamese(method=method).eval()
        found = DecodingSession(model, rows, pad_id=0, max_new_tokens=4)
        model.streams.batch_both = False
        expected = DecodingSession(model, rows, pad_id=0, max_new_tokens=4)
        for session in (found, expected):
            for token in (5, 6, 7):
                session.forward(torch.tensor([[token]]))
        torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
