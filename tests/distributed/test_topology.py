"""Engine settings resolved for a machine."""

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
    "nproc_per_node": None,
    "nnodes": 1,
    "num_gpus": 0,
}
SINGLE = {"name": "single", "stage": 0}
ZERO3 = {"name": "zero3", "stage": 3}
FSDP2 = {"name": "fsdp2", "stage": 0, "fsdp2": True}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, "cpu", 1)),
        ({"num_gpus": 1}, (0, "cuda", 1)),
        ({"num_gpus": 8}, (2, "cuda", 8)),
        ({"num_gpus": 8, "device": "cpu"}, (0, "cpu", 1)),
        ({"num_gpus": 8, "nproc_per_node": 1}, (0, "cuda", 1)),
        ({"nproc_per_node": 2}, (2, "cpu", 2)),
        ({"world_size": 16, "num_gpus": 8}, (2, "cuda", 16)),
        ({"world_size": 1, "num_gpus": 8}, (0, "cuda", 1)),
        ({**SINGLE, "num_gpus": 8}, (0, "cuda", 1)),
        (ZERO3, (3, "cpu", 1)),
        ({**ZERO3, "num_gpus": 4}, (3, "cuda", 4)),
        (FSDP2, (0, "cpu", 1)),
        ({**FSDP2, "nproc_per_node": 2}, (0, "cpu", 2)),
        ({**FSDP2, "num_gpus": 8}, (0, "cuda", 8)),
        ({"name": "zero2", "stage": 2, "num_gpus": 8, "nproc_per_node": 8, "nnodes": 2}, (2, "cuda", 16)),
    ],
)
def test_stage_device_and_world_size(changes: dict[str, Any], expected: tuple[int, str, int]) -> None:
    topology = resolve_topology(**{**AUTO, **changes})
    assert (topology.stage, topology.device, topology.world_size) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "engine.device=cuda: torch sees no GPU"),
        ({"num_gpus": 2, "nproc_per_node": 8}, "engine.nproc_per_node=8: .* set engine.nproc_per_node=2"),
        ({**SINGLE, "nproc_per_node": 2}, "engine=single: .* engine.nproc_per_node=2 is set; use engine=zero2"),
        ({**SINGLE, "nnodes": 2}, "engine=single: .* engine.nnodes=2 is set"),
        ({**SINGLE, "world_size": 2}, "engine=single: .* 2 processes were started"),
    ],
)
def test_too_many_processes_are_rejected_with_a_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_topology(**{**AUTO, **changes})


def test_text_of_a_topology() -> None:
    topology = Topology(stage=2, offload=True, device="cuda", nproc_per_node=8, nnodes=2)
    assert str(topology) == "8 processes on each of 2 nodes, 16 in total; DeepSpeed ZeRO stage 2, offloaded to the CPU"
    assert str(Topology(stage=0, offload=False, device="cpu", nproc_per_node=1, nnodes=1)) == "1 process; plain torch"
    fsdp2 = Topology(stage=0, offload=False, device="cuda", nproc_per_node=8, nnodes=1, fsdp2=True)
    assert str(fsdp2) == "8 processes; FSDP2" and fsdp2.distributed
