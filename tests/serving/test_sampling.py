"""Sampling follows temperature and top_p."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from imsm.serving.sampling import Sampling, choose_token

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def frequencies(sampling: Sampling, count: int = 4000) -> list[float]:
    generator = sampling.generator()
    found = Counter(choose_token(LOGITS, sampling, generator) for _ in range(count))
    return [found[token] / count for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1, seed=1), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5, seed=1), [0.685, 0.247, 0.0616, 0.0068]),
        (Sampling(temperature=1, top_p=0.75, seed=1), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1, top_p=0.81, seed=1), [0.526, 0.316, 0.158, 0]),
        (Sampling(temperature=1, top_p=1e-9, seed=1), [1, 0, 0, 0]),
        (Sampling(temperature=1e-300, seed=1), [1, 0, 0, 0]),
        (Sampling(), [1, 0, 0, 0]),
    ],
)
def test_frequencies(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.03)


def test_seeds() -> None:
    def sample(seed: int | None) -> list[int]:
        sampling = Sampling(temperature=1, seed=seed)
        generator = sampling.generator()
        return [choose_token(LOGITS, sampling, generator) for _ in range(30)]

    assert sample(5) == sample(5) != sample(6)
    assert sample(None) != sample(None)
