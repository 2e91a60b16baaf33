"""Which engine trains a run, on which device, and how a batch is shared out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from imsm.stages.layout import topology_of
from imsm.training.local import SingleDeviceEngine, choose_device
from imsm.training.optimizer import ELEMENTWISE, build_optimizer, build_schedule
from imsm.training.zero_settings import deepspeed_config

if TYPE_CHECKING:
    from imsm.config import RunConfig
    from imsm.processes.layout import Topology
    from imsm.processes.world import DistributedContext
    from imsm.siamese.model import SiameseForCausalLM
    from imsm.training.engine import Engine


def local_device(config: RunConfig, world: DistributedContext) -> torch.device:
    """Where a process works: its own GPU, or the CPU."""
    device = choose_device(config.engine.device)
    if device.type == "cuda" and world.store is not None:
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    return device


def micro_batch_size(config: RunConfig, *, processes: int) -> int:
    """Examples of one pass of one process."""
    recipe = config.trainer
    share = math.ceil(recipe.global_batch_size / processes)
    return min(recipe.micro_batch_size or share, share)


def engine_settings(
    config: RunConfig, model: SiameseForCausalLM, *, layout: Topology
) -> dict[str, Any]:
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
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    steps: int,
    device: torch.device,
    world: DistributedContext,
) -> Iterator[Engine]:
    """The engine that trains ``model``; inside, the processes can talk in tensors.

    Args:
        config: the run's.
        model: what is trained; of no use afterwards where several processes trained it.
        steps: of the whole training.
        device: of this process.
        world: this process and those beside it.
    """
    recipe = config.trainer
    optimizer = build_optimizer(
        model,
        name=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        gate_learning_rate=recipe.gate_learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = build_schedule(
        optimizer, name=recipe.lr_scheduler_type, warmup_ratio=recipe.warmup_ratio, steps=steps
    )
    if world.store is None:
        yield SingleDeviceEngine(
            model, optimizer=optimizer, schedule=schedule, clip_norm=recipe.max_grad_norm, device=device
        )
        return
    from imsm.processes.collectives import start_collectives
    from imsm.training.zero import DeepSpeedEngine

    layout = topology_of(config, gpus=torch.cuda.device_count(), joined=world.size)
    start_collectives(world, device=device, timeout_minutes=config.engine.collective_timeout_minutes)
    engine = DeepSpeedEngine(
        model,
        optimizer=optimizer,
        elementwise=recipe.optimizer in ELEMENTWISE,
        schedule=schedule,
        clip_norm=recipe.max_grad_norm,
        settings=engine_settings(config, model, layout=layout),
        device=device,
        world=world,
    )
    try:
        yield engine
    finally:
        engine.close()
