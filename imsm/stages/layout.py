"""The processes that a run's engine means, here or on the machines that it is planned for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imsm.errors import UserError
from imsm.processes.layout import Topology, resolve_topology
from imsm.processes.nodes import processes_by_hostfile

if TYPE_CHECKING:
    from imsm.config import RunConfig


def topology_of(
    config: RunConfig, *, gpus: int, joined: int | None = None, elsewhere: bool = False
) -> Topology:
    """The processes that a run's engine means.

    Args:
        config: the run's.
        gpus: visible on this machine.
        joined: how many processes there are already; None: this one is not one of a group.
        elsewhere: whether it is about other machines, which have the GPUs that the run asks for.

    Raises:
        UserError: more processes than engine, GPUs or hostfile allow, or not as many as there are.
    """
    engine = config.engine
    asked = engine.nproc_per_node
    if joined is None and engine.nnodes > 1:
        elsewhere = True
        if engine.hostfile is not None:
            asked = processes_by_hostfile(engine.hostfile, nodes=engine.nnodes, processes=asked)
        elif asked is None and not gpus and engine.device != "cpu":
            raise UserError(
                f"engine.nnodes={engine.nnodes}: no GPU is visible here to count; give "
                "engine.nproc_per_node=..., the GPUs of a node, as well"
            )
    if joined is not None and asked is not None and asked * engine.nnodes != joined:
        raise UserError(
            f"engine.nproc_per_node={asked}, engine.nnodes={engine.nnodes}: {joined} processes were "
            "started; start as many, or leave both out"
        )
    if joined is None and elsewhere and (asked is not None or engine.device == "cuda"):
        gpus = max(gpus, asked or 1)
    return resolve_topology(
        name=engine.name,
        stage=engine.stage,
        offload=engine.offload,
        device=engine.device,
        processes=asked,
        nodes=engine.nnodes,
        gpus=gpus,
        joined=joined,
    )
