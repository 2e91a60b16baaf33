"""How many processes carry a run out, and by which engine: `engine=auto|single|zero1|...`."""

from __future__ import annotations

from dataclasses import dataclass

from imsm.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """What an engine's configuration comes to on this machine.

    Attributes:
        stage: of ZeRO; 0: one process, plain torch.
        offload: whether ZeRO keeps weights and optimizer state in the CPU's memory.
        device: "cpu" or "cuda".
        processes: on each node.
        nodes: how many machines.
    """

    stage: int
    offload: bool
    device: str
    processes: int
    nodes: int

    @property
    def size(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes

    @property
    def distributed(self) -> bool:
        """Whether DeepSpeed carries the run out, be it in one process."""
        return self.stage > 0

    def __str__(self) -> str:
        each = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        if self.nodes > 1:
            each += f" on each of {self.nodes} nodes, {self.size} together"
        how = f"DeepSpeed ZeRO stage {self.stage}" if self.distributed else "plain torch"
        return f"{each}; {how}{', offloaded to the CPU' if self.offload else ''}"


def resolve_topology(
    *,
    name: str,
    stage: int | None,
    offload: bool,
    device: str,
    processes: int | None,
    nodes: int,
    gpus: int,
    joined: int | None = None,
) -> Topology:
    """The layout that an engine's configuration means here.

    Args:
        name: of the engine, for messages.
        stage: of ZeRO; 0: one process; None: by the GPUs.
        offload: as of `Layout`.
        device: "auto", "cpu" or "cuda".
        processes: on each node; None: one per GPU, on a CPU one.
        nodes: how many machines.
        gpus: visible on this machine.
        joined: how many processes there are already, if this one was started as one of them
            (torchrun, srun), in place of ``processes`` and ``nodes``.

    Raises:
        UserError: more processes than the engine or the GPUs allow.
    """
    if device == "cuda" and not gpus:
        raise UserError("engine.device=cuda: torch sees no GPU here; use engine.device=auto or cpu")
    place = "cpu" if device == "cpu" or not gpus else "cuda"
    if joined is not None:
        processes, nodes = joined, 1
    elif processes is None:
        processes = gpus if place == "cuda" and stage != 0 else 1
    if stage is None:
        stage = 2 if processes * nodes > 1 else 0
    if stage == 0 and processes * nodes > 1:
        what = f"engine.nproc_per_node={processes}" if nodes == 1 else f"engine.nnodes={nodes}"
        what = f"{joined} processes were started" if joined is not None else what
        raise UserError(f"engine={name}: is one process, but {what}; choose engine=zero2 or auto")
    if joined is None and place == "cuda" and processes > gpus and nodes == 1:
        raise UserError(
            f"engine.nproc_per_node={processes}: {gpus} GPU{'s are' if gpus > 1 else ' is'} visible "
            f"here; set engine.nproc_per_node={gpus}, or engine.device=cpu"
        )
    return Topology(stage=stage, offload=offload, device=place, processes=processes, nodes=nodes)
