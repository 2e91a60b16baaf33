"""When memory does not suffice: a batch in smaller parts, or one line that says what to lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from accelerate.utils.memory import clear_device_cache

from imsm.utils.errors import RunError
from imsm.utils.progress import print_above_bar

Result = TypeVar("Result")


_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that a GPU's or the machine's memory did not suffice."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


class AdaptiveBatchSize(Generic[Result]):
    """Computes batches, and in halves what does not fit; once halved, batches stay so small.

    Args:
        compute: gives one result for each place of a batch, which do not depend on each other.
        what: what a batch is made of, in the plural: "prompts".
        key: the setting that its size comes from.
    """

    def __init__(self, compute: Callable[[Sequence[int]], list[Result]], *, what: str, key: str) -> None:
        self._compute, self._what, self._key = compute, what, key
        self.at_most: int | None = None

    def __call__(self, places: Sequence[int]) -> list[Result]:
        """The results of all places, in their order.

        Raises:
            RunError: not even one fits.
        """
        found: list[Result] = []
        while len(found) < len(places):
            part = places[len(found) :][: self.at_most]
            try:
                found += self._compute(part)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise RunError(
                        f"out of memory with one of the {self._what} at a time; a smaller backbone "
                        "or backbone.dtype=bfloat16 needs less"
                    ) from error
            clear_device_cache(garbage_collection=True)  # the error held the tensors until here
            self.at_most = len(part) // 2
            print_above_bar(
                f"out of memory with {len(part)} {self._what} at a time: goes on with "
                f"{self.at_most} (lower {self._key} to begin so)"
            )
        return found
