"""Which engine trains a run, on which device, and how a batch is shared out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from imsm.distributed.multi_node import processes_by_hostfile
from imsm.distributed.topology import Topology, resolve_topology
from imsm.training.engines.deepspeed_config import deepspeed_config
from imsm.training.engines.single_device import SingleDeviceEngine, choose_device
from imsm.training.optimizer import ELEMENTWISE, build_optimizer, build_schedule
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig
    from imsm.distributed.context import DistributedContext
    from imsm.distributed.topology import Topology
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.base import Engine


def topology_of(config: RunConfig, *, gpus: int, joined: int | None = None, elsewhere: bool = False) -> Topology:
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


def local_device(config: RunConfig, dist_context: DistributedContext) -> torch.device:
    """Where a process works: its own GPU, or the CPU."""
    device = choose_device(config.engine.device)
    if device.type == "cuda" and dist_context.store is not None:
        device = torch.device("cuda", dist_context.local_rank)
        torch.cuda.set_device(device)
    return device


def micro_batch_size(config: RunConfig, *, processes: int) -> int:
    """Examples of one pass of one process."""
    recipe = config.trainer
    share = math.ceil(recipe.global_batch_size / processes)
    return min(recipe.micro_batch_size or share, share)


def engine_settings(config: RunConfig, model: SiameseForCausalLM, *, layout: Topology) -> dict[str, Any]:
    """DeepSpeed's configuration for a run; `mode=plan` shows it."""
    recipe, engine = config.trainer, config.engine
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    micro = micro_batch_size(config, processes=layout.size)
    return deepspeed_config(
        stage=layout.stage,
        offload=layout.offload,
        pinned=layout.device == "cuda",
        micro_batch_size=micro,
        accumulation=math.ceil(recipe.global_batch_size / (micro * layout.size)),
        clip_norm=recipe.max_grad_norm,
        largest=max(sizes),
        trainable=sum(sizes),
        bucket_elements=engine.reduce_bucket_size,
        prefetch_elements=engine.prefetch_bucket_size,
        live_elements=engine.max_live_parameters,
    )


@contextmanager
def build_engine(
    config: RunConfig, model: SiameseForCausalLM, *, steps: int, device: torch.device, dist_context: DistributedContext
) -> Iterator[Engine]:
    """The engine that trains ``model``; inside, the processes can talk in tensors.

    Args:
        config: the run's.
        model: what is trained; of no use afterwards where several processes trained it.
        steps: of the whole training.
        device: of this process.
        dist_context: this process and those beside it.
    """
    recipe = config.trainer
    optimizer = build_optimizer(
        model,
        name=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        gate_learning_rate=recipe.gate_learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = build_schedule(optimizer, name=recipe.lr_scheduler_type, warmup_ratio=recipe.warmup_ratio, steps=steps)
    if dist_context.store is None:
        yield SingleDeviceEngine(
            model, optimizer=optimizer, schedule=schedule, clip_norm=recipe.max_grad_norm, device=device
        )
        return
    from imsm.distributed.process_group import start_collectives
    from imsm.training.engines.deepspeed import DeepSpeedEngine

    layout = topology_of(config, gpus=torch.cuda.device_count(), joined=dist_context.size)
    start_collectives(dist_context, device=device, timeout_minutes=config.engine.collective_timeout_minutes)
    engine = DeepSpeedEngine(
        model,
        optimizer=optimizer,
        elementwise=recipe.optimizer in ELEMENTWISE,
        schedule=schedule,
        clip_norm=recipe.max_grad_norm,
        settings=engine_settings(config, model, layout=layout),
        device=device,
        dist_context=dist_context,
    )
    try:
        yield engine
    finally:
        engine.close()
