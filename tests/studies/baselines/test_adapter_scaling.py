"""Scaled adapters against the streams, PEFT's own scale and interpolated weights."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale

from imsm.pipeline.model import build_adapter, new_model
from imsm.studies.baselines.adapter_scaling import build_scaled_model
from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder
from tests.helpers.adapters import prompt_tuning
from tests.helpers.config import config
from tests.models.adapters.moe import tiny_loramoe
from tests.models.siamese.tiny import ADAPTERS, decoded, padded, perturb, prompts, tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits

METHODS = {**ADAPTERS, "loramoe": lambda: tiny_loramoe(blc_weight=0.0)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_0_is_the_original_and_1_the_tuned_model(method: str, dtype: torch.dtype) -> None:
    model = tiny_siamese(method=METHODS[method](), gate=None, dtype=dtype)
    original, tuned = both_streams(model)
    assert not torch.equal(original, tuned)
    assert torch.equal(logits(build_scaled_model(model, 0.0)), original)
    assert torch.equal(logits(build_scaled_model(model, 1.0)), tuned)
    between = logits(build_scaled_model(model, 0.5))
    assert not torch.equal(between, original) and not torch.equal(between, tuned)
    row = prompts()[0]
    model.stream = "tuned"
    assert decoded(build_scaled_model(model, 1.0), row) == decoded(model, row)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_scale_equals_pefts_own(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    found = logits(build_scaled_model(model, 0.4))
    with rescale_adapter_scale(model.adapted, 0.4):
        expected = logits(model, stream="tuned")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "ia3"])
def test_the_scale_interpolates_the_weights(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    found = logits(build_scaled_model(model, 0.4))
    base = tiny_siamese(method=method, gate=None)  # equal weights
    assert isinstance(base.adapted, PeftModel)
    before = {
        name.replace(".base_layer", ""): value.clone()
        for name, value in base.backbone.named_parameters()
        if not value.requires_grad
    }
    merged = base.adapted.merge_and_unload()
    with torch.no_grad():
        for name, value in merged.named_parameters():
            value.copy_(torch.lerp(before[name], value, 0.4))
    ids, mask = padded(prompts(), side="right")
    with torch.no_grad():
        expected = merged(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_every_shipped_method_is_scaled_or_rejected() -> None:
    rejected = []
    for path in sorted((conf_folder() / "peft").glob("*.yaml")):
        more = ["peft.peft_type=ADAPTION_PROMPT", "peft.kwargs={adapter_layers:2,adapter_len:4}"]
        chosen = config(f"peft={path.stem}", "method=peft", *more * (path.stem == "generic"))
        model = new_model(chosen, build_adapter(chosen), device=torch.device("cpu")).eval()
        perturb(model, scale=0.05)
        try:
            build_scaled_model(model, 0.5)
        except UserError as error:
            rejected.append(path.stem)
            assert "virtual tokens" in str(error) or path.stem == "generic"
    assert rejected == ["generic", "p_tuning", "prefix_tuning", "prompt_tuning"]


def test_virtual_tokens_are_rejected() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=4), gate=None)
    with pytest.raises(UserError, match=r"PROMPT_TUNING adds 4 virtual tokens"):
        build_scaled_model(model, 0.5)


def test_a_stateful_layer_is_rejected() -> None:
    model = tiny_siamese(gate=None)
    layer = next(iter(model.streams.layers))
    inner, calls = layer.forward, []

    def counting(rows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return inner(rows) + len(calls)

    layer.forward = counting
    with pytest.raises(UserError, match=r"LORA at scale .* is not the"):
        build_scaled_model(model, 0.5)


def test_scaling_leaves_the_model_unchanged() -> None:
    model = tiny_siamese()
    before = logits(model)
    logits(build_scaled_model(model, 0.5))
    assert model.stream == "interwoven" and not model.training
    assert torch.equal(logits(model), before)
