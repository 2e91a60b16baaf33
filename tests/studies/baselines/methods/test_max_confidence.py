"""The stream with the higher maximum probability."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from imsm.studies.baselines.methods import max_confidence
from tests.models.siamese.tiny import tiny_siamese
from tests.studies.baselines.tiny_logits import both_streams, logits


def test_each_token_is_from_one_stream() -> None:
    model = tiny_siamese(gate=None)
    original, tuned = both_streams(model)
    choice = original.softmax(-1).amax(-1) > tuned.softmax(-1).amax(-1)
    assert choice.any() and not choice.all()
    mixing = max_confidence.build_model(SimpleNamespace(model=lambda: model), None)
    expected = torch.where(choice[:, None], original, tuned)
    torch.testing.assert_close(logits(mixing), expected, rtol=1e-5, atol=1e-5)
