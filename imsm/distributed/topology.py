"""Engine settings -> ZeRO stage, device and number of processes."""

from dataclasses import dataclass

from imsm.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The processes of a run; ZeRO ``stage`` 0 without ``fsdp2`` is plain torch in one process on "cpu" or "cuda".

    ``offload`` keeps ZeRO's weights and optimizer state in CPU memory; ``fsdp2`` shards the backbone's layers.
    """

    stage: int
    offload: bool
    device: str
    nproc_per_node: int
    nnodes: int
    fsdp2: bool = False

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.nproc_per_node * self.nnodes

    @property
    def distributed(self) -> bool:
        """Whether DeepSpeed or FSDP2 trains the run, even in one process."""
        return self.stage > 0 or self.fsdp2

    def __str__(self) -> str:
        text = f"{self.nproc_per_node} process{'es' if self.nproc_per_node > 1 else ''}"
        if self.nnodes > 1:
            text += f" on each of {self.nnodes} nodes, {self.world_size} in total"
        backend = f"DeepSpeed ZeRO stage {self.stage}" if self.stage else "FSDP2" if self.fsdp2 else "plain torch"
        return f"{text}; {backend}{', offloaded to the CPU' if self.offload else ''}"


def resolve_topology(
    *,
    name: str,
    stage: int | None,
    offload: bool,
    device: str,
    nproc_per_node: int | None,
    nnodes: int,
    num_gpus: int,
    world_size: int | None = None,
    fsdp2: bool = False,
) -> Topology:
    """Resolve the automatic engine settings on this machine.

    ``stage=None`` chooses 2 for several processes and 0 for one; ``nproc_per_node=None`` one process
    per GPU, or one on a CPU. ``world_size``, the size of a group that torchrun or srun started,
    replaces ``nproc_per_node`` and ``nnodes``. ``name`` is the engine's, for messages.

    Raises:
        UserError: More processes than the engine or the GPUs allow.
    """
    if device == "cuda" and not num_gpus:
        raise UserError("engine.device=cuda: torch sees no GPU; use engine.device=auto or cpu")
    resolved_device = "cpu" if device == "cpu" or not num_gpus else "cuda"
    # the launcher decides how many processes there are; the settings are for runs that we launch
    if world_size is not None:
        nproc_per_node, nnodes = world_size, 1
    elif nproc_per_node is None:
        nproc_per_node = num_gpus if resolved_device == "cuda" and (stage != 0 or fsdp2) else 1
    if stage is None:
        stage = 2 if nproc_per_node * nnodes > 1 else 0
    if stage == 0 and not fsdp2 and nproc_per_node * nnodes > 1:
        setting = f"engine.nproc_per_node={nproc_per_node}" if nnodes == 1 else f"engine.nnodes={nnodes}"
        given = f"{world_size} processes were started" if world_size is not None else f"{setting} is set"
        raise UserError(f"engine={name}: runs in one process, but {given}; use engine=zero2 or auto")
    # several nodes are not checked: only their own GPUs count, which this machine does not see
    if world_size is None and resolved_device == "cuda" and nproc_per_node > num_gpus and nnodes == 1:
        raise UserError(
            f"engine.nproc_per_node={nproc_per_node}: only {num_gpus} GPU{'s are' if num_gpus > 1 else ' is'} "
            f"visible; set engine.nproc_per_node={num_gpus}, or engine.device=cpu"
        )
    return Topology(
        stage=stage, offload=offload, device=resolved_device, nproc_per_node=nproc_per_node, nnodes=nnodes, fsdp2=fsdp2
    )
