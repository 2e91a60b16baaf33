"""Out of memory: batches are halved; a batch of one that does not fit is a RunError."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from imsm.utils.errors import RunError
from imsm.utils.oom import AdaptiveBatchSize, is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"
GPU = "CUDA out of memory. Tried to allocate 2.00 GiB."


class LimitedSquare:
    """Squares batches of at most ``limit`` numbers."""

    def __init__(self, limit: int, error: str = CPU) -> None:
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.limit:
            raise RuntimeError(self.error)
        return [number**2 for number in batch]


@pytest.mark.parametrize("error", [CPU, GPU])
def test_batches_are_halved_until_they_fit_and_stay_small(error: str, capsys: pytest.CaptureFixture[str]) -> None:
    square = LimitedSquare(3, error)
    adaptive = AdaptiveBatchSize(square, what="prompts", key="evaluation.batch_size")
    numbers = list(range(20, 3, -1))
    assert adaptive(numbers) == [number**2 for number in numbers]
    assert adaptive([1, 2, 3, 4]) == [1, 4, 9, 16]
    assert square.sizes == [17, 8, 4, *[2] * 8, 1, 2, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "evaluation.batch_size=8" in lines[0]


def test_a_batch_of_one_that_does_not_fit_is_a_run_error_of_one_line() -> None:
    with pytest.raises(RunError, match=r"evaluation\.batch_size=1") as caught:
        AdaptiveBatchSize(LimitedSquare(0), what="prompts", key="evaluation.batch_size")([1, 2])
    assert "\n" not in str(caught.value)


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        AdaptiveBatchSize(LimitedSquare(0, "shapes do not fit"), what="prompts", key="x")([1, 2])


def test_torchs_own_error_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
