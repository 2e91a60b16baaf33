"""Messages between processes, with threads over one store in place of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from torch.distributed import HashStore

from imsm.distributed.context import DistributedContext
from imsm.utils.errors import RunError, UserError


def run_on_all(fn: Callable[[DistributedContext], Any], world_size: int = 3) -> list[Any]:
    """Return each rank's result, or its error as (type, message)."""
    store = HashStore()

    def run(rank: int) -> Any:
        try:
            return fn(DistributedContext(rank=rank, world_size=world_size, local_rank=rank, store=store))
        except (UserError, RunError) as error:
            return type(error).__name__, str(error)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


def test_run_on_main_runs_once_and_every_rank_gets_the_result() -> None:
    calls: list[int] = []

    def fn(dist_context: DistributedContext) -> Any:
        rank = dist_context.rank
        return dist_context.run_on_main(lambda: calls.append(rank) or {"at": [rank, None, "é"]})

    assert run_on_all(fn) == [{"at": [0, None, "é"]}] * 3
    assert calls == [0]


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_of_rank_0_is_raised_in_every_rank(kind: type[Exception]) -> None:
    def fail() -> None:
        raise kind("no such folder")

    assert run_on_all(lambda dist_context: dist_context.run_on_main(fail)) == [(kind.__name__, "no such folder")] * 3


def test_an_unexpected_error_of_rank_0_does_not_leave_the_others_waiting() -> None:
    store = HashStore()
    main, other = (DistributedContext(rank=rank, world_size=2, store=store) for rank in range(2))
    with pytest.raises(ZeroDivisionError):
        main.run_on_main(lambda: 1 // 0)
    with pytest.raises(RunError, match="process 0 failed: ZeroDivisionError"):
        other.run_on_main(lambda: 1)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_main_process_runs_the_model_inside_the_block_of_all(sharded: bool) -> None:
    entered: list[int] = []

    def fn(dist_context: DistributedContext, error: Exception | None = None) -> Any:
        @contextmanager
        def block() -> Iterator[None]:
            entered.append(dist_context.rank)
            yield

        def run() -> int:
            assert bool(entered) == sharded
            if error is not None:
                raise error
            return 7

        if sharded:
            dist_context.lock_step = block
        return dist_context.run_model_on_main(run)

    assert run_on_all(fn) == [7, 7, 7]
    assert sorted(entered) == ([0, 1, 2] if sharded else [])
    assert run_on_all(partial(fn, error=UserError("no"))) == [("UserError", "no")] * 3


def test_all_gather_is_ordered_by_rank_and_can_be_repeated() -> None:
    def fn(dist_context: DistributedContext) -> list[list[str]]:
        return [dist_context.all_gather(f"{turn}.{dist_context.rank}") for turn in range(3)]

    assert run_on_all(fn) == [[[f"{turn}.{rank}" for rank in range(3)] for turn in range(3)]] * 3


def test_a_single_process_needs_no_store() -> None:
    assert DistributedContext().run_on_main(lambda: 3) == 3
    assert DistributedContext().all_gather("x") == ["x"]
    assert DistributedContext().is_main
    with pytest.raises(ValueError, match="need a store"):
        DistributedContext(world_size=2)
