"""Pooling against brute force: causal, of complete queries, and in chunks."""

from __future__ import annotations

import pytest
import torch

from imsm.models.siamese.query_pooling import pool, pool_causal

BRUTE = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0).values, "last": lambda rows: rows[-1]}
MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])


def hidden_states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("pooling", BRUTE)
def test_causal_pooling_equals_brute_force_over_the_prefix(pooling: str) -> None:
    hidden = hidden_states()
    queries, _ = pool_causal(hidden, MASK, pooling=pooling)
    for row in range(3):
        for place in range(8):
            read = hidden[row, : place + 1][MASK[row, : place + 1].bool()]
            expected = BRUTE[pooling](read) if len(read) else torch.zeros(5)
            torch.testing.assert_close(queries[row, place], expected)


@pytest.mark.parametrize("pooling", BRUTE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pool_equals_the_last_causal_position(pooling: str, dtype: torch.dtype) -> None:
    hidden = hidden_states(dtype)
    queries, _ = pool_causal(hidden, MASK, pooling=pooling)
    full = pool(hidden, MASK, pooling=pooling)
    assert full.dtype == queries.dtype == torch.float32
    torch.testing.assert_close(full, queries[:, -1])


@pytest.mark.parametrize("pooling", BRUTE)
@pytest.mark.parametrize("chunks", [[8], [1] * 8, [3, 4, 1], [2, 6]])
def test_chunks_give_the_same_result(pooling: str, chunks: list[int]) -> None:
    hidden = hidden_states()
    full, end = pool_causal(hidden, MASK, pooling=pooling)
    state, found = None, []
    for part, mask in zip(hidden.split(chunks, 1), MASK.split(chunks, 1), strict=True):
        queries, state = pool_causal(part, mask, pooling=pooling, before=state)
        found.append(queries)
    torch.testing.assert_close(torch.cat(found, dim=1), full)
    torch.testing.assert_close(state.pooled, end.pooled)


@pytest.mark.parametrize("pooling", BRUTE)
def test_positions_outside_the_query_are_ignored(pooling: str) -> None:
    """Even if hidden states of padding are NaN."""
    hidden = hidden_states()
    corrupted = hidden.masked_fill(MASK[..., None] == 0, torch.nan)
    corrupted[1, 5:] = torch.inf
    expected = pool(hidden, MASK, pooling=pooling)
    torch.testing.assert_close(pool(corrupted, MASK, pooling=pooling), expected)
    queries, _ = pool_causal(corrupted, MASK, pooling=pooling)
    torch.testing.assert_close(queries[:, -1], expected)
