"""The scaled adapter as a baseline."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from peft.helpers import rescale_adapter_scale

from imsm.studies.baselines.methods import adapter_scale
from tests.models.siamese.tiny import tiny_siamese
from tests.studies.baselines.tiny_logits import logits


def test_the_value_scales_the_adapter() -> None:
    model = tiny_siamese(method="lora", gate=None)
    found = logits(adapter_scale.build_model(SimpleNamespace(model=lambda: model), 1.5))
    with rescale_adapter_scale(model.adapted, 1.5):
        expected = logits(model, stream="tuned")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
