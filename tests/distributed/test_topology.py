"""What an engine comes to on a machine."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.distributed.topology import Topology, resolve_topology
from imsm.utils.errors import UserError

AUTO: dict[str, Any] = {
    "name": "auto",
    "stage": None,
    "offload": False,
    "device": "auto",
    "processes": None,
    "nodes": 1,
    "gpus": 0,
}


def found(**changes: Any) -> tuple[int, str, int]:
    layout: Topology = resolve_topology(**{**AUTO, **changes})
    return layout.stage, layout.device, layout.size


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, "cpu", 1)),
        ({"gpus": 1}, (0, "cuda", 1)),
        ({"gpus": 8}, (2, "cuda", 8)),
        ({"gpus": 8, "device": "cpu"}, (0, "cpu", 1)),
        ({"gpus": 8, "processes": 1}, (0, "cuda", 1)),
        ({"processes": 2}, (2, "cpu", 2)),
        ({"joined": 16, "gpus": 8}, (2, "cuda", 16)),
        ({"joined": 1, "gpus": 8}, (0, "cuda", 1)),
        ({"name": "local", "stage": 0, "gpus": 8}, (0, "cuda", 1)),
        ({"name": "zero3", "stage": 3}, (3, "cpu", 1)),
        ({"name": "zero3", "stage": 3, "gpus": 4}, (3, "cuda", 4)),
        ({"name": "zero2", "stage": 2, "gpus": 8, "processes": 8, "nodes": 2}, (2, "cuda", 16)),
    ],
)
def test_layouts(changes: dict[str, Any], expected: tuple[int, str, int]) -> None:
    assert found(**changes) == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"device": "cuda"}, "engine.device=cuda: torch sees no GPU here"),
        ({"gpus": 2, "processes": 8}, "engine.nproc_per_node=8: 2 GPUs are visible"),
        ({"name": "local", "stage": 0, "processes": 2}, "engine=single: is one process, but"),
        ({"name": "local", "stage": 0, "joined": 2}, "2 processes were started"),
    ],
)
def test_what_cannot_be_is_named_with_the_way_out(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        found(**changes)
