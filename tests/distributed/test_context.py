"""What processes tell each other, with threads over one store in place of processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from imsm.distributed.context import DistributedContext
from imsm.utils.errors import RunError, UserError


def everywhere(work: Callable[[DistributedContext], Any], size: int = 3) -> list[Any]:
    """What each of the processes gets; an error in place of a value."""
    store = HashStore()

    def one(rank: int) -> Any:
        try:
            return work(DistributedContext(rank=rank, size=size, local_rank=rank, store=store))
        except (UserError, RunError) as error:
            return type(error).__name__, str(error)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_the_first_does_it_and_all_have_it() -> None:
    done: list[int] = []

    def work(dist_context: DistributedContext) -> Any:
        return dist_context.run_on_main(
            lambda: done.append(dist_context.rank) or {"at": [dist_context.rank, None, "é"]}
        )

    assert everywhere(work) == [{"at": [0, None, "é"]}] * 3
    assert done == [0]


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_of_the_first_is_everybodys(kind: type[Exception]) -> None:
    def refuse() -> None:
        raise kind("no such folder")

    assert everywhere(lambda dist_context: dist_context.run_on_main(refuse)) == [(kind.__name__, "no such folder")] * 3


def test_texts_come_by_rank_again_and_again() -> None:
    def work(dist_context: DistributedContext) -> list[list[str]]:
        return [dist_context.all_gather(f"{turn}.{dist_context.rank}") for turn in range(3)]

    assert everywhere(work) == [[[f"{turn}.{rank}" for rank in range(3)] for turn in range(3)]] * 3


def test_alone_it_needs_no_store() -> None:
    assert DistributedContext().run_on_main(lambda: 3) == 3
    assert DistributedContext().all_gather("x") == ["x"]
    assert DistributedContext().is_main
    with pytest.raises(ValueError, match="need a store"):
        DistributedContext(size=2)
