"""Distances of queries, against brute force and plain forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imsm.data.batching import training_order
from imsm.data.tokenization import TokenizedExample
from imsm.studies.baselines.query_distance import HELD_OUT, PERCENTILE, measure_distances, query_states
from tests.models.siamese.tiny import prompts, tiny_siamese


def test_near_queries_are_below_the_threshold_and_far_ones_above() -> None:
    generator = np.random.default_rng(0)
    known = generator.normal(size=(200, 4)).astype(np.float32)
    near = known[:5] + np.float32(1e-3)
    far = known[:5] + np.float32(50)
    found = measure_distances(known, {"near": near, "far": far}, seed=0)
    assert max(found.by_task["near"][:5]) < found.threshold < min(found.by_task["far"])
    # against brute force
    (order,) = training_order(200, batch_size=200, seed=0, epoch=-2)
    count = round(HELD_OUT * 200)
    held_out, rest = known[order[:count]], known[order[count:]]
    brute = np.linalg.norm(held_out[:, None] - rest[None], axis=-1).min(axis=1)
    assert found.threshold == pytest.approx(np.percentile(brute, PERCENTILE), rel=1e-4)
    distance = np.linalg.norm(far[:, None] - rest[None], axis=-1).min(axis=1)
    assert found.by_task["far"] == pytest.approx(distance, rel=1e-4)
    assert np.mean(brute > found.threshold) == pytest.approx(0.05)


def test_query_states_are_mean_hidden_states_of_the_original() -> None:
    model = tiny_siamese(gate=None)
    rows = prompts()
    items = [TokenizedExample(id=str(n), prompt_ids=tuple(row), answer_ids=()) for n, row in enumerate(rows)]
    found = query_states(model, items, pad_id=0, batch_size=2, label="test")
    for row, state in zip(rows, found, strict=True):
        with model.streams.adapter_disabled(), torch.no_grad():
            alone = model.streams.decoder(torch.tensor([row])).last_hidden_state[0]
        assert state == pytest.approx(alone.mean(dim=0).numpy(), abs=1e-4)
