"""The stream with the lower entropy."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.distributions import Categorical

from imsm.studies.baselines.methods import entropy_mix
from tests.models.siamese.tiny import tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits


def test_each_token_is_from_one_stream() -> None:
    model = tiny_siamese(gate=None)
    original, tuned = both_streams(model)
    choice = Categorical(logits=original).entropy() < Categorical(logits=tuned).entropy()
    assert choice.any() and not choice.all()
    mixing = entropy_mix.build_model(SimpleNamespace(model=lambda: model), None)
    expected = torch.where(choice[:, None], original, tuned)
    torch.testing.assert_close(logits(mixing), expected, rtol=1e-5, atol=1e-5)
