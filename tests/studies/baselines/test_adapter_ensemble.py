"""Two adapters against the mean of their logits."""

from __future__ import annotations

import copy

import pytest
import torch

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.studies.baselines.adapter_ensemble import build_ensemble, share_backbone
from imsm.studies.baselines.logit_mixing import mix_logits
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.tiny import ADAPTERS, decoded, perturb, prompts, tiny_siamese
from tests.studies.baselines.tiny_logits import logits


def with_another_seed(model: SiameseForCausalLM, method: str) -> SiameseForCausalLM:
    other = tiny_siamese(method=method, gate=None)
    perturb(other, scale=0.2)
    assert not torch.equal(logits(other, stream="tuned"), logits(model, stream="tuned"))
    return other


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_two_adapters_are_the_mean_of_their_logits(method: str) -> None:
    model = tiny_siamese(method=method, gate=None)
    other = with_another_seed(model, method)
    expected = (logits(model, stream="tuned") + logits(other, stream="tuned")) / 2
    assert share_backbone(model, other) > 0
    mixing = build_ensemble(model, other, mix_logits(0.5))
    torch.testing.assert_close(logits(mixing), expected, rtol=1e-5, atol=1e-5)
    weights = {value.data_ptr() for value in model.backbone.parameters()}
    frozen = [value for value in other.backbone.parameters() if not value.requires_grad]
    assert all(value.data_ptr() in weights for value in frozen)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_an_adapter_with_itself_is_that_adapter(method: str) -> None:
    build = ADAPTERS.get(method) or (lambda: prompt_tuning(num_virtual_tokens=4))
    model = tiny_siamese(method=build(), gate=None)
    mixing = build_ensemble(model, copy.deepcopy(model), mix_logits(0.5))
    torch.testing.assert_close(logits(mixing), logits(model, stream="tuned"), rtol=1e-5, atol=1e-5)
    for row in prompts():
        assert decoded(mixing, row) == decoded(model, row)
