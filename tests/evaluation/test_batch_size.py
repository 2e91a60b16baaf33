"""The batch size of an evaluation by free memory, with numbers of real models and GPUs."""

from __future__ import annotations

import pytest

from imsm.evaluation.batch_size import MAX_BATCH_SIZE, fitting_batch_size

GIB = 2**30
# keys and values of 32 layers, 8 heads of 128 numbers, in bfloat16
LLAMA3_TOKEN, LLAMA3_VOCABULARY = 2 * 32 * 8 * 128 * 2, 128_256
# of the five tests: GSM8K's longest prompt and its limit of new tokens
LONGEST = 238 + 512
AFTER_WEIGHTS = 80 * 10**9 - 16.1 * 10**9 - 10**9


def llama3(streams: int, *, free: float = AFTER_WEIGHTS, tokens: int = LONGEST, **options: int) -> int:
    return fitting_batch_size(
        free=int(free),
        kv_bytes_per_token=streams * LLAMA3_TOKEN,
        max_tokens=tokens,
        vocab_size=LLAMA3_VOCABULARY,
        **options,
    )


def test_llama3_8b_on_80_gb_runs_at_least_128_prompts_with_both_streams() -> None:
    assert llama3(2) >= 128
    assert llama3(1) >= llama3(2)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("free", [4 * GIB, 8 * GIB, 20 * GIB, 60 * GIB, 120 * GIB])
@pytest.mark.parametrize("tokens", [64, 750, 4096])
def test_caches_and_logits_of_the_batch_fit(streams: int, free: int, tokens: int) -> None:
    rows = llama3(streams, free=free, tokens=tokens)
    assert rows & (rows - 1) == 0
    if rows > 1:
        assert rows * (streams * LLAMA3_TOKEN * tokens + 8 * LLAMA3_VOCABULARY) + 3 * GIB < 0.75 * free
    # twice as many do not fit, or are not wanted
    assert rows == MAX_BATCH_SIZE or 2 * rows * streams * LLAMA3_TOKEN * tokens > 0.6 * free - 4 * GIB


def test_two_streams_halve_the_batch_where_memory_decides() -> None:
    assert llama3(1, free=24 * GIB) == 2 * llama3(2, free=24 * GIB)


def test_a_little_less_memory_gives_the_same_batch() -> None:
    assert llama3(2, free=0.97 * AFTER_WEIGHTS) == llama3(2)


def test_there_is_always_a_batch() -> None:
    assert llama3(2, free=0) == llama3(2, free=-GIB) == 1
    assert llama3(1, max_rows=1) == 1
    # no more than the examples of a process
    assert llama3(1, max_rows=100) == 64
