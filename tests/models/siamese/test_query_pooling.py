"""Pooling against brute force: along the sequence, at once, and in pieces."""

from __future__ import annotations

import pytest
import torch

from imsm.models.siamese.query_pooling import empty_state, pool, pool_causal

BRUTE = {"mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0).values, "last": lambda rows: rows[-1]}
MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])


def memories(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("pooling", BRUTE)
def test_running_query_is_brute_force_over_what_came(pooling: str) -> None:
    memory = memories()
    queries, _ = pool_causal(memory, MASK, pooling=pooling, before=empty_state(memory, pooling=pooling))
    for row in range(3):
        for place in range(8):
            read = memory[row, : place + 1][MASK[row, : place + 1].bool()]
            expected = BRUTE[pooling](read) if len(read) else torch.zeros(5)
            torch.testing.assert_close(queries[row, place], expected)


@pytest.mark.parametrize("pooling", BRUTE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_query_is_the_running_querys_end(pooling: str, dtype: torch.dtype) -> None:
    memory = memories(dtype)
    queries, _ = pool_causal(memory, MASK, pooling=pooling, before=empty_state(memory, pooling=pooling))
    whole = pool(memory, MASK, pooling=pooling)
    assert whole.dtype == queries.dtype == torch.float32
    torch.testing.assert_close(whole, queries[:, -1])


@pytest.mark.parametrize("pooling", BRUTE)
@pytest.mark.parametrize("pieces", [[8], [1] * 8, [3, 4, 1], [2, 6]])
def test_pieces_change_nothing(pooling: str, pieces: list[int]) -> None:
    memory = memories()
    whole, end = pool_causal(memory, MASK, pooling=pooling, before=empty_state(memory, pooling=pooling))
    state, found = empty_state(memory, pooling=pooling), []
    for part, mask in zip(memory.split(pieces, 1), MASK.split(pieces, 1), strict=True):
        queries, state = pool_causal(part, mask, pooling=pooling, before=state)
        found.append(queries)
    torch.testing.assert_close(torch.cat(found, dim=1), whole)
    torch.testing.assert_close(state.pooled, end.pooled)


@pytest.mark.parametrize("pooling", BRUTE)
def test_what_stands_outside_the_query_is_not_read(pooling: str) -> None:
    """Even where a memory of padding is not a number."""
    memory = memories()
    spoilt = memory.masked_fill(MASK[..., None] == 0, torch.nan)
    spoilt[1, 5:] = torch.inf
    expected = pool(memory, MASK, pooling=pooling)
    torch.testing.assert_close(pool(spoilt, MASK, pooling=pooling), expected)
    queries, _ = pool_causal(spoilt, MASK, pooling=pooling, before=empty_state(memory, pooling=pooling))
    torch.testing.assert_close(queries[:, -1], expected)
