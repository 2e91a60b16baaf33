"""torch's process group over the rendezvous store."""

from __future__ import annotations

import atexit

import pytest
import torch
from torch import distributed

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group


def test_collectives_work_and_a_second_call_keeps_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    dist_context = DistributedContext(store=distributed.HashStore())
    init_process_group(dist_context, device=torch.device("cpu"), timeout_minutes=1)
    try:
        values = torch.tensor([1.0, 2.0])
        distributed.all_reduce(values)
        assert values.tolist() == [1.0, 2.0]
        assert (distributed.get_world_size(), distributed.get_backend()) == (1, "gloo")
        group = distributed.group.WORLD
        init_process_group(dist_context, device=torch.device("cpu"), timeout_minutes=1)
        assert distributed.group.WORLD is group
        assert at_exit == [distributed.destroy_process_group]
    finally:
        distributed.destroy_process_group()
