"""The processes that carry out one run together, as each of them sees it.

They talk over the store that they met at: text and small values, with no limit of time, since what
one process does meanwhile (waiting for another run, reading a disk) may take long. Tensors go
through collectives, which have one (`imsm.training.engines.deepspeed`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from imsm.utils.errors import RunError, UserError

if TYPE_CHECKING:
    from torch.distributed import Store

Value = TypeVar("Value")
_ERRORS: dict[str, type[Exception]] = {"UserError": UserError, "RunError": RunError}
_PAUSE = 0.02
"""Seconds between two looks at the store: a blocking wait would keep signals from Python."""


class DistributedContext:
    """A process and those beside it; by default it is alone.

    Every process must call `first` and `gather` in the same order.

    Args:
        rank: which process this is, of all nodes.
        size: how many there are.
        local_rank: which one this is on its node.
        store: where they meet; None if it is alone.
    """

    def __init__(self, *, rank: int = 0, size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        if size > 1 and store is None:
            raise ValueError(f"size={size}: several processes need a store to meet at")
        self.rank, self.size, self.local_rank, self.store = rank, size, local_rank, store
        self._calls = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def run_on_main(self, work: Callable[[], Value]) -> Value:
        """What ``work`` gives in the first process, alone: plain values, as JSON holds them.

        Raises:
            UserError: raised there, raised everywhere; a RunError likewise.
        """
        if self.size == 1:
            return work()
        key = self._key()
        if not self.is_main:
            told = json.loads(self._read(key))
            if "error" in told:
                raise _ERRORS[told["error"]](told["text"])
            return cast("Value", told["value"])
        try:
            value = work()
        except (UserError, RunError) as error:
            kind = "UserError" if isinstance(error, UserError) else "RunError"
            self._write(key, json.dumps({"error": kind, "text": str(error)}))
            raise
        except BaseException as error:  # nobody shall wait for what does not come
            text = f"process 0 failed: {type(error).__name__}: {error}"
            self._write(key, json.dumps({"error": "RunError", "text": text}))
            raise
        self._write(key, json.dumps({"value": value}))
        return value

    def all_gather(self, text: str) -> list[str]:
        """The texts of all processes, by rank, in every process."""
        if self.size == 1:
            return [text]
        key = self._key()
        self._write(f"{key}/{self.rank}", text)
        return [self._read(f"{key}/{rank}") for rank in range(self.size)]

    def _key(self) -> str:
        self._calls += 1
        return f"imsm/{self._calls}"

    def _write(self, key: str, text: str) -> None:
        assert self.store is not None
        self.store.set(key, text)

    def _read(self, key: str) -> str:
        assert self.store is not None
        while not self.store.check([key]):
            time.sleep(_PAUSE)
        return str(self.store.get(key).decode())
