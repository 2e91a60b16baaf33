"""Mixed logits against direct computations and a constant gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from imsm.studies.baselines.logit_mixing import (
    Mix,
    build_mixing_model,
    mix_by_confidence,
    mix_by_entropy,
    mix_logits,
    mix_probabilities,
)
from tests.models.siamese.tiny import ARCHITECTURES, decoded, prompts, tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits

SCALAR = {
    "_target_": "imsm.models.siamese.gate.Gate",
    "inputs": [],
    "rank": None,
    "granularity": "scalar",
    "trainable": False,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_logits_equal_a_constant_scalar_gate(architecture: str) -> None:
    gated = tiny_siamese(architecture, gate=SCALAR | {"init_value": 0.3})
    mixing = build_mixing_model(gated, mix_logits(0.3))
    torch.testing.assert_close(logits(mixing), logits(gated), rtol=1e-5, atol=1e-5)
    for row in prompts():
        assert decoded(mixing, row) == decoded(gated, row)


def test_mixed_logits_differ_from_a_gate_if_the_head_caps_its_logits() -> None:
    capped = {"final_logit_softcapping": 0.1}
    ARCHITECTURES["capped"] = ARCHITECTURES["gemma3"] | capped
    try:
        gated = tiny_siamese("capped", gate=SCALAR | {"init_value": 0.3})
    finally:
        del ARCHITECTURES["capped"]
    original, tuned = both_streams(gated)
    found = logits(build_mixing_model(gated, mix_logits(0.3)))
    torch.testing.assert_close(found, 0.3 * original + 0.7 * tuned, rtol=1e-5, atol=1e-5)
    gated.stream = "interwoven"
    assert (logits(gated) - found).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        (mix_logits, 0.4),
        (mix_logits, -0.5),
        (mix_probabilities, 0.4),
        (mix_by_entropy, None),
        (mix_by_confidence, None),
    ],
)
def test_every_mix_equals_a_direct_computation(rule: Callable[..., Any], weight: float | None) -> None:
    mix: Mix = rule if weight is None else rule(weight)
    model = tiny_siamese(gate=None)
    original, tuned = both_streams(model)
    found = logits(build_mixing_model(model, mix))
    p_o, p_t = (softmax(z.double().numpy(), axis=-1) for z in (original, tuned))
    expected = {
        mix_by_entropy: torch.where(
            torch.tensor(entropy(p_o, axis=-1) < entropy(p_t, axis=-1))[:, None], original, tuned
        ),
        mix_by_confidence: torch.where(torch.tensor(p_o.max(axis=-1) > p_t.max(axis=-1))[:, None], original, tuned),
    }.get(rule)
    if weight is not None:
        linear = weight * original + (1 - weight) * tuned
        mean = torch.tensor(weight * p_o + (1 - weight) * p_t).log().float()
        expected = mean if rule is mix_probabilities else linear
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    # greedy decoding with a cache gives the same tokens as complete forward passes
    row = prompts()[0]
    tokens = list(row)
    mixing = build_mixing_model(model, mix)
    for _ in range(8):
        ids = torch.tensor([tokens])
        query = {"query_mask": torch.ones_like(ids)}
        tokens.append(int(mixing(ids, **query).logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    assert decoded(mixing, row) == tokens[len(row) :]


def test_confidence_by_hand() -> None:
    confident, unsure = [9.0, 0.0, 0.0], [1.0, 0.9, 0.8]
    original = torch.tensor([confident, unsure, confident])
    tuned = torch.tensor([unsure, confident, confident])
    for mix in (mix_by_entropy, mix_by_confidence):
        mixed, weight = mix(original, tuned)
        assert weight.tolist() == [1.0, 0.0, 0.0]  # equal in the third: the tuned stream
        assert mixed.tolist() == [confident, confident, confident]
    # two likely tokens: lower entropy than many unlikely ones, but not a higher maximum
    two = torch.tensor([[math.log(0.5), math.log(0.5), *[math.log(1e-9)] * 8]])
    many = torch.tensor([[math.log(0.51), *[math.log(0.49 / 9)] * 9]])
    assert mix_by_entropy(two, many)[1].item() == 1
    assert mix_by_confidence(two, many)[1].item() == 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_a_mix_are_the_streams(weight: float) -> None:
    model = tiny_siamese(gate=None)
    stream = "original" if weight else "tuned"
    expected = logits(model, stream=stream)
    found = logits(build_mixing_model(model, mix_logits(weight)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found = logits(build_mixing_model(model, mix_probabilities(weight)))
    torch.testing.assert_close(found, expected.log_softmax(dim=-1), rtol=1e-5, atol=2e-5)


def test_mixing_leaves_the_model_unchanged() -> None:
    model = tiny_siamese()
    before = logits(model)
    logits(build_mixing_model(model, mix_logits(0.5)))
    assert model.stream == "interwoven" and not model.training
    assert torch.equal(logits(model), before)
