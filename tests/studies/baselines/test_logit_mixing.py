"""Controls as models: mixed logits, a scaled adapter, two adapters; against direct computations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from scipy.special import softmax
from scipy.stats import entropy

from imsm.models.adapters.loramoe import loramoe
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.model import build_adapter, new_model
from imsm.studies.baselines.adapter_ensemble import build_ensemble, share_backbone
from imsm.studies.baselines.adapter_scaling import build_scaled_model
from imsm.studies.baselines.logit_mixing import (
    Mix,
    build_mixing_model,
    mix_by_confidence,
    mix_by_entropy,
    mix_logits,
    mix_probabilities,
)
from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder
from tests.helpers.adapters import prompt_tuning
from tests.helpers.config import config
from tests.models.siamese.tiny import (
    ADAPTERS,
    ARCHITECTURES,
    ATTENTION,
    decoded,
    padded,
    perturb,
    prompts,
    tiny_siamese,
)

SCALAR = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": [],
    "rank": None,
    "granularity": "scalar",
    "trainable": False,
}


def logits(model: SiameseForCausalLM, *, stream: str | None = None) -> torch.Tensor:
    """At every token of the prompts, (tokens, V)."""
    ids, mask = padded(prompts(), side="right")
    model.stream = stream or model.stream
    query = {"query_mask": mask} if model.stream == "interwoven" else {}
    with torch.no_grad():
        found = model(ids, attention_mask=mask, **query).logits
    return found[mask.bool()]


def both(model: SiameseForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(model, stream="original"), logits(model, stream="tuned")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_logits_are_a_constant_scalar_gate(architecture: str) -> None:
    gated = tiny_siamese(architecture, gate=SCALAR | {"init_value": 0.3})
    control = build_mixing_model(gated, mix_logits(0.3))
    torch.testing.assert_close(logits(control), logits(gated), rtol=1e-5, atol=1e-5)
    for row in prompts():
        assert decoded(control, row) == decoded(gated, row)


def test_where_the_head_caps_its_logits_a_scalar_gate_mixes_something_else() -> None:
    capped = {"final_logit_softcapping": 0.1}
    ARCHITECTURES["capped"] = ARCHITECTURES["gemma3"] | capped
    try:
        gated = tiny_siamese("capped", gate=SCALAR | {"init_value": 0.3})
    finally:
        del ARCHITECTURES["capped"]
    original, tuned = both(gated)
    found = logits(build_mixing_model(gated, mix_logits(0.3)))
    torch.testing.assert_close(found, 0.3 * original + 0.7 * tuned, rtol=1e-5, atol=1e-5)
    gated.stream = "interwoven"
    assert (logits(gated) - found).abs().max() > 1e-2


@pytest.mark.parametrize(
    "mix", [mix_logits(0.4), mix_logits(-0.5), mix_probabilities(0.4), mix_by_entropy, mix_by_confidence]
)
def test_mixes_against_a_direct_computation(mix: Mix) -> None:
    model = tiny_siamese(gate=None)
    original, tuned = both(model)
    found = logits(build_mixing_model(model, mix))
    p_o, p_t = (softmax(z.double().numpy(), axis=-1) for z in (original, tuned))
    wanted = {
        mix_by_entropy: torch.where(
            torch.tensor(entropy(p_o, axis=-1) < entropy(p_t, axis=-1))[:, None], original, tuned
        ),
        mix_by_confidence: torch.where(torch.tensor(p_o.max(axis=-1) > p_t.max(axis=-1))[:, None], original, tuned),
    }.get(mix)
    if wanted is None:
        weight = mix.keywords["weight"]
        linear = weight * original + (1 - weight) * tuned
        mean = torch.tensor(weight * p_o + (1 - weight) * p_t).log().float()
        wanted = mean if "prob" in mix.func.__name__ else linear
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    # a cache and greedy steps come to the same tokens as whole passes
    row = prompts()[0]
    tokens = list(row)
    control = build_mixing_model(model, mix)
    for _ in range(8):
        ids = torch.tensor([tokens])
        asked = {"query_mask": torch.ones_like(ids)}
        tokens.append(int(control(ids, **asked).logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    assert decoded(control, row) == tokens[len(row) :]


def test_confidence_by_hand() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [1.0, 0.9, 0.8]
    original = torch.tensor([sure, unsure, sure])
    tuned = torch.tensor([unsure, sure, sure])
    for rule in (mix_by_entropy, mix_by_confidence):
        mix, share = rule(original, tuned)
        assert share.tolist() == [1.0, 0.0, 0.0]  # the third is equal: the tuned stream's
        assert mix.tolist() == [sure, sure, sure]
    # two likely tokens: less entropy than many unlikely ones, but no higher maximum
    two = torch.tensor([[math.log(0.5), math.log(0.5), *[math.log(1e-9)] * 8]])
    many = torch.tensor([[math.log(0.51), *[math.log(0.49 / 9)] * 9]])
    assert mix_by_entropy(two, many)[1].item() == 1
    assert mix_by_confidence(two, many)[1].item() == 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_ends_of_a_mix_are_the_streams(weight: float) -> None:
    model = tiny_siamese(gate=None)
    stream = "original" if weight else "tuned"
    wanted = logits(model, stream=stream)
    found = logits(build_mixing_model(model, mix_logits(weight)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found = logits(build_mixing_model(model, mix_probabilities(weight)))
    torch.testing.assert_close(found, wanted.log_softmax(dim=-1), rtol=1e-5, atol=2e-5)


def test_a_control_leaves_the_model_as_it_was() -> None:
    model = tiny_siamese()
    before = logits(model)
    logits(build_mixing_model(model, mix_logits(0.5)))
    logits(build_scaled_model(model, 0.5))
    assert model.stream == "interwoven" and not model.training
    assert torch.equal(logits(model), before)


# ------------------------------------------------------------------- strength


def experts() -> dict:
    return dict(
        target_modules=ATTENTION, num_experts=2, r=4, lora_alpha=8, lora_dropout=0.0,
        per_expert_dropout=False, blc_weight=0.0, blc_alpha=0.1, mask_padding=True,
    )  # fmt: skip


METHODS = {**ADAPTERS, "loramoe": lambda: loramoe(**experts())}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_0_is_the_original_and_1_the_tuned_model(method: str, dtype: torch.dtype) -> None:
    model = tiny_siamese(method=METHODS[method](), gate=None, dtype=dtype)
    original, tuned = both(model)
    assert not torch.equal(original, tuned)
    assert torch.equal(logits(build_scaled_model(model, 0.0)), original)
    assert torch.equal(logits(build_scaled_model(model, 1.0)), tuned)
    between = logits(build_scaled_model(model, 0.5))
    assert not torch.equal(between, original) and not torch.equal(between, tuned)
    row = prompts()[0]
    model.stream = "tuned"
    assert decoded(build_scaled_model(model, 1.0), row) == decoded(model, row)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_strength_is_pefts_own_where_it_has_one(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    found = logits(build_scaled_model(model, 0.4))
    with rescale_adapter_scale(model.adapted, 0.4):
        wanted = logits(model, stream="tuned")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "ia3"])
def test_strength_is_a_path_between_the_weights(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    found = logits(build_scaled_model(model, 0.4))
    base = tiny_siamese(method=method, gate=None)  # the same values
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
        wanted = merged(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_every_shipped_method_has_a_strength_or_is_refused() -> None:
    refused = []
    for path in sorted((conf_folder() / "peft").glob("*.yaml")):
        more = ["peft.peft_type=ADAPTION_PROMPT", "peft.kwargs={adapter_layers:2,adapter_len:4}"]
        chosen = config(f"peft={path.stem}", "method=peft", *more * (path.stem == "any"))
        model = new_model(chosen, build_adapter(chosen), device=torch.device("cpu")).eval()
        perturb(model, scale=0.05)
        try:
            build_scaled_model(model, 0.5)
        except UserError as error:
            refused.append(path.stem)
            assert "learned positions before the text" in str(error) or path.stem == "any"
    assert refused == ["any", "p_tuning", "prefix_tuning", "prompt_tuning"]


def test_a_learned_prompt_has_no_strength() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=4), gate=None)
    with pytest.raises(UserError, match=r"PROMPT_TUNING changes no weights, it puts 4 learned"):
        build_scaled_model(model, 0.5)


def test_a_layer_that_keeps_a_state_is_refused() -> None:
    model = tiny_siamese(gate=None)
    layer = next(iter(model.streams.layers))
    inner, calls = layer.forward, []

    def counting(rows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return inner(rows) + len(calls)

    layer.forward = counting
    with pytest.raises(UserError, match=r"LORA at strength .* is not the"):
        build_scaled_model(model, 0.5)


# --------------------------------------------------------------- two adapters


def of_another_seed(model: SiameseForCausalLM, method: str) -> SiameseForCausalLM:
    other = tiny_siamese(method=method, gate=None)
    perturb(other, scale=0.2)
    assert not torch.equal(logits(other, stream="tuned"), logits(model, stream="tuned"))
    return other


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_two_adapters_are_the_mean_of_their_logits(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    other = of_another_seed(model, method)
    wanted = (logits(model, stream="tuned") + logits(other, stream="tuned")) / 2
    assert share_backbone(model, other) > 0
    control = build_ensemble(model, other, mix_logits(0.5))
    torch.testing.assert_close(logits(control), wanted, rtol=1e-5, atol=1e-5)
    weights = {value.data_ptr() for value in model.backbone.parameters()}
    frozen = [value for value in other.backbone.parameters() if not value.requires_grad]
    assert all(value.data_ptr() in weights for value in frozen)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_twice_the_same_adapter_is_that_adapter(method: str) -> None:
    build = ADAPTERS.get(method) or (lambda: prompt_tuning(num_virtual_tokens=4))
    model = tiny_siamese(method=build(), gate=None)
    control = build_ensemble(model, copy.deepcopy(model), mix_logits(0.5))
    torch.testing.assert_close(logits(control), logits(model, stream="tuned"), rtol=1e-5, atol=1e-5)
    for row in prompts():
        assert decoded(control, row) == decoded(model, row)
