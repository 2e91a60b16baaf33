"""Probabilities mixed with a constant weight."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from imsm.studies.baselines.methods import probability_mix
from tests.models.siamese.tiny import tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits


def test_the_value_is_the_weight_of_the_original() -> None:
    model = tiny_siamese(gate=None)
    original, tuned = both_streams(model)
    mixing = probability_mix.build_model(SimpleNamespace(model=lambda: model), 0.3)
    torch.testing.assert_close(
        logits(mixing), torch.lerp(tuned.softmax(-1), original.softmax(-1), 0.3).log(), rtol=1e-5, atol=2e-5
    )
