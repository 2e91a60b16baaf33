"""Out of memory: a batch is done in halves, and what cannot be halved is said in one line."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from imsm.utils.errors import RunError
from imsm.utils.oom import AdaptiveBatchSize, is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"
GPU = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Limited:
    """Squares; a batch of more than ``fits`` does not fit."""

    def __init__(self, fits: int, error: str = CPU) -> None:
        self.fits, self.error = fits, error
        self.sizes: list[int] = []

    def __call__(self, places: Sequence[int]) -> list[int]:
        self.sizes.append(len(places))
        if len(places) > self.fits:
            raise RuntimeError(self.error)
        return [place**2 for place in places]


@pytest.mark.parametrize("error", [CPU, GPU])
def test_halves_until_it_fits_and_stays_small(error: str, capsys: pytest.CaptureFixture[str]) -> None:
    limited = Limited(3, error)
    halving = AdaptiveBatchSize(limited, what="prompts", key="evaluation.batch_size")
    places = list(range(20, 3, -1))
    assert halving(places) == [place**2 for place in places]
    assert halving([1, 2, 3, 4]) == [1, 4, 9, 16]
    assert limited.sizes == [17, 8, 4, *[2] * 8, 1, 2, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("imsm: out of memory with 17 prompts at a time: goes on with 8 ")
    assert "evaluation.batch_size" in lines[0]


def test_one_that_does_not_fit_is_an_error_of_one_line() -> None:
    with pytest.raises(RunError, match="one of the prompts at a time") as caught:
        AdaptiveBatchSize(Limited(0), what="prompts", key="evaluation.batch_size")([1, 2])
    assert "\n" not in str(caught.value)


def test_other_errors_go_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        AdaptiveBatchSize(Limited(0, "shapes do not fit"), what="prompts", key="x")([1, 2])


def test_torchs_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
