"""DistributedContext: rank, world size, and messages between the processes of a run.

Messages are strings and JSON values over the rendezvous store, without a timeout: the main process
may wait long for a lock or a disk. Tensors use collectives, which have one (`process_group`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from imsm.utils.errors import RunError, UserError

if TYPE_CHECKING:  # torch takes seconds to import, and the launcher does not need it
    from torch.distributed import Store

T = TypeVar("T")
_ERRORS: dict[str, type[Exception]] = {"UserError": UserError, "RunError": RunError}
# a blocking wait would delay Python's signal handlers
_POLL_SECONDS = 0.02


class DistributedContext:
    """This process within its group; by default a group of one.

    All processes must call `run_on_main` and `all_gather` in the same order. ``local_rank`` is the
    rank on this node; several processes need the rendezvous ``store``.
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        if world_size > 1 and store is None:
            raise ValueError(f"world_size={world_size}: several processes need a store")
        self.rank, self.world_size, self.local_rank, self.store = rank, world_size, local_rank, store
        self.lock_step: Callable[[], AbstractContextManager[None]] = nullcontext
        """Inside its block processes may run different numbers of forward passes; see `imsm.distributed.lock_step`."""
        self._calls = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def run_on_main(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on rank 0 and broadcast its JSON result.

        Raises:
            UserError: Raised by ``fn``, and then in every process; likewise RunError.
        """
        if self.world_size == 1:
            return fn()
        key = self._next_key()
        if not self.is_main:
            message = json.loads(self._read(key))
            if "error" in message:
                raise _ERRORS[message["error"]](message["text"])
            return cast("T", message["value"])
        try:
            value = fn()
        except (UserError, RunError) as error:
            kind = "UserError" if isinstance(error, UserError) else "RunError"
            self._write(key, json.dumps({"error": kind, "text": str(error)}))
            raise
        # also KeyboardInterrupt: the other ranks would wait forever
        except BaseException as error:
            text = f"process 0 failed: {type(error).__name__}: {error}"
            self._write(key, json.dumps({"error": "RunError", "text": text}))
            raise
        self._write(key, json.dumps({"value": value}))
        return value

    def run_model_on_main(self, fn: Callable[[], T]) -> T:
        """Return what `run_on_main` does, for a ``fn`` that runs the model, whose weights may be sharded."""
        if self.lock_step is nullcontext:
            return self.run_on_main(fn)
        outcome: Callable[[], T] = fn
        with self.lock_step():
            if self.is_main:
                outcome = _call(fn)
        return self.run_on_main(outcome)

    def all_gather(self, text: str) -> list[str]:
        """Return the strings of all processes, ordered by rank."""
        if self.world_size == 1:
            return [text]
        key = self._next_key()
        self._write(f"{key}/{self.rank}", text)
        return [self._read(f"{key}/{rank}") for rank in range(self.world_size)]

    def _next_key(self) -> str:
        # a new key per call: a slow process may still read the previous one, so none is reused
        self._calls += 1
        return f"imsm/{self._calls}"

    def _write(self, key: str, text: str) -> None:
        assert self.store is not None
        self.store.set(key, text)

    def _read(self, key: str) -> str:
        assert self.store is not None
        while not self.store.check([key]):
            time.sleep(_POLL_SECONDS)
        return str(self.store.get(key).decode())


def _call(fn: Callable[[], T]) -> Callable[[], T]:
    """Call ``fn``; return a function that returns its result, or raises its UserError or RunError."""

    def fail(error: Exception) -> T:
        raise error

    try:
        value = fn()
    except (UserError, RunError) as error:
        return partial(fail, error)
    return lambda: value
