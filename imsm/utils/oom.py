"""Retry a batch in smaller parts when memory runs out."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from accelerate.utils.memory import clear_device_cache

from imsm.utils.errors import RunError
from imsm.utils.progress import print_above_bar

Result = TypeVar("Result")
_OOM_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether ``error`` was raised because CPU or GPU memory ran out."""
    # By message: torch.OutOfMemoryError covers neither CPU allocations nor cuBLAS workspaces.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OOM_MESSAGES)


class AdaptiveBatchSize(Generic[Result]):
    """Compute batches; halve the batch size permanently when memory runs out.

    ``compute`` returns one result per index of a batch; results must not depend on each other. The message
    names ``what`` a batch consists of (e.g. "prompts") and the config ``key`` of the batch size.
    """

    def __init__(self, compute: Callable[[Sequence[int]], list[Result]], *, what: str, key: str) -> None:
        self._compute, self._what, self._key = compute, what, key
        self.max_batch_size: int | None = None

    def __call__(self, indices: Sequence[int]) -> list[Result]:
        """Return the results of ``indices``, in order.

        Raises:
            RunError: Memory runs out with a batch size of 1.
        """
        results: list[Result] = []
        while len(results) < len(indices):
            batch = indices[len(results) :][: self.max_batch_size]
            try:
                results += self._compute(batch)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise RunError(
                        f"{self._key}=1: out of memory; use a smaller backbone or backbone.dtype=bfloat16"
                    ) from error
            # Only here: inside `except`, the traceback still holds the tensors of the failed batch.
            clear_device_cache(garbage_collection=True)
            # Of the failed batch, not of the limit: the last batch of a call may be smaller.
            self.max_batch_size = len(batch) // 2
            print_above_bar(
                f"out of memory with {len(batch)} {self._what} per batch, retrying with batch size "
                f"{self.max_batch_size} (set {self._key}={self.max_batch_size})"
            )
        return results
