"""Build the training engine of a run; choose its processes, device and micro-batch size."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from imsm.config.schema import RunConfig
from imsm.data.batching import MicroBatching
from imsm.distributed.context import DistributedContext
from imsm.distributed.multi_node import slots_per_node
from imsm.distributed.process_group import init_process_group
from imsm.distributed.topology import Topology, resolve_topology
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.base import Engine
from imsm.training.engines.deepspeed_config import deepspeed_config
from imsm.training.engines.fsdp2 import Fsdp2Engine
from imsm.training.engines.single_device import SingleDeviceEngine, choose_device
from imsm.training.optimizer import ELEMENTWISE, build_lr_scheduler, build_optimizer
from imsm.training.trainer import BatchPlan
from imsm.utils.errors import UserError


def topology_of(config: RunConfig, *, gpus: int, joined: int | None = None, elsewhere: bool = False) -> Topology:
    """Return the processes that a run's engine needs.

    ``gpus`` is the number visible here; ``joined`` the number of processes already started (torchrun, srun),
    None outside a group. ``elsewhere`` (for plans) assumes that the run's machines have the GPUs it requests.

    Raises:
        UserError: Engine, GPUs or hostfile do not allow the number of processes.
    """
    engine = config.engine
    processes = engine.nproc_per_node
    if joined is None and engine.nnodes > 1:
        elsewhere = True
        if engine.hostfile is not None:
            processes = slots_per_node(engine.hostfile, nnodes=engine.nnodes, nproc_per_node=processes)
        elif processes is None and not gpus and engine.device != "cpu":
            raise UserError(
                f"engine.nnodes={engine.nnodes}: no GPU is visible on this machine to count; also set "
                "engine.nproc_per_node=... to the number of GPUs per node"
            )
    if joined is not None and processes is not None and processes * engine.nnodes != joined:
        raise UserError(
            f"engine.nproc_per_node={processes}, engine.nnodes={engine.nnodes}: {joined} processes were started; "
            "start the same number, or leave both keys out"
        )
    if joined is None and elsewhere and (processes is not None or engine.device == "cuda"):
        # a plan may be made on a login node that has no GPU
        gpus = max(gpus, processes or 1)
    topology = resolve_topology(
        name=engine.name,
        stage=engine.stage,
        offload=engine.offload,
        fsdp2=engine.fsdp2,
        device=engine.device,
        nproc_per_node=processes,
        nnodes=engine.nnodes,
        num_gpus=gpus,
        world_size=joined,
    )
    if config.mode == "run" and config.method.trainable and config.trainer.mixed_precision == "fp16":
        _check_fp16(topology, elsewhere=elsewhere)
    return topology


def _check_fp16(topology: Topology, *, elsewhere: bool) -> None:
    if topology.distributed:
        raise UserError(
            "trainer.mixed_precision=fp16: runs in one process without DeepSpeed, which would also cast adapter and "
            "gate; set engine=single, or use backbone.dtype=bfloat16 without it"
        )
    if topology.device == "cpu" and not elsewhere:
        raise UserError(
            "trainer.mixed_precision=fp16: needs a GPU; omit it and set backbone.dtype=float32 to train on the CPU"
        )


def local_device(config: RunConfig, dist_context: DistributedContext) -> torch.device:
    """Return the device of this process."""
    device = choose_device(config.engine.device)
    if device.type == "cuda" and dist_context.store is not None:
        device = torch.device("cuda", dist_context.local_rank)
        # NCCL uses the current device; without this every process would use GPU 0
        torch.cuda.set_device(device)
    return device


def micro_batch_size(config: RunConfig, *, processes: int, tokens: float | None = None) -> int:
    """Return the number of examples in one forward pass of one process.

    With ``tokens`` per example, `trainer.micro_batch_tokens` is taken into account.
    """
    recipe = config.trainer
    # ceil: a global batch that does not divide evenly leaves smaller shares to some processes
    per_process = math.ceil(recipe.global_batch_size / processes)
    size = recipe.micro_batch_size or per_process
    if tokens is not None and recipe.micro_batch_tokens is not None:
        size = max(1, int(recipe.micro_batch_tokens / max(tokens, 1)))
    return min(size, per_process)


def batch_plan_of(config: RunConfig, *, processes: int) -> BatchPlan:
    """Return how a run batches its training examples."""
    recipe = config.trainer
    return BatchPlan(
        num_epochs=recipe.num_epochs,
        global_batch_size=recipe.global_batch_size,
        micro_batching=MicroBatching(
            size=micro_batch_size(config, processes=processes),
            tokens=recipe.micro_batch_tokens,
            packed=recipe.packing,
            # the balance of LoRAMoE's experts is that of a micro-batch
            sort=not config.peft.arguments().get("blc_weight"),
        ),
        seed=config.seed,
        group_by_length=recipe.group_by_length,
        loss_group_size=recipe.micro_batch_size if recipe.loss_reduction == "micro_batches" else None,
        carry_over=recipe.carry_over,
    )


def engine_settings(config: RunConfig, model: SiameseForCausalLM, *, topology: Topology) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run."""
    recipe, engine = config.trainer, config.engine
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    micro_batch = micro_batch_size(config, processes=topology.world_size)
    return deepspeed_config(
        stage=topology.stage,
        offload=topology.offload,
        pin_memory=topology.device == "cuda",
        micro_batch_size=micro_batch,
        gradient_accumulation_steps=math.ceil(recipe.global_batch_size / (micro_batch * topology.world_size)),
        max_grad_norm=recipe.max_grad_norm,
        largest_param=max(sizes),
        num_trainable=sum(sizes),
        reduce_bucket_size=engine.reduce_bucket_size,
        prefetch_bucket_size=engine.prefetch_bucket_size,
        max_live_parameters=engine.max_live_parameters,
    )


@contextmanager
def build_engine(
    config: RunConfig,
    model: SiameseForCausalLM,
    *,
    scheduled_steps: int,
    device: torch.device,
    dist_context: DistributedContext,
) -> Iterator[Engine]:
    """Build the engine that trains ``model`` with an LR schedule of ``scheduled_steps`` optimizer steps.

    Collectives are available inside the block; a model trained by DeepSpeed is unusable afterwards.
    """
    recipe = config.trainer
    optimizer = build_optimizer(
        model,
        name=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        gate_learning_rate=recipe.gate_learning_rate,
        weight_decay=recipe.weight_decay,
    )
    lr_scheduler = build_lr_scheduler(
        optimizer,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_ratio=recipe.warmup_ratio,
        num_training_steps=scheduled_steps,
        warmup_rounding=recipe.warmup_rounding,
    )
    if dist_context.store is None:
        yield SingleDeviceEngine(
            model,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            max_grad_norm=recipe.max_grad_norm,
            device=device,
            fp16=recipe.mixed_precision == "fp16",
        )
        return
    init_process_group(dist_context, device=device, timeout_minutes=config.engine.collective_timeout_minutes)
    if config.engine.fsdp2:
        yield Fsdp2Engine(
            model,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            max_grad_norm=recipe.max_grad_norm,
            device=device,
            dist_context=dist_context,
        )
        return
    from imsm.training.engines.deepspeed import DeepSpeedEngine  # optional dependency

    # inside the group its size is known, so nothing is inferred from the hostfile
    topology = topology_of(config, gpus=torch.cuda.device_count(), joined=dist_context.world_size)
    engine = DeepSpeedEngine(
        model,
        optimizer=optimizer,
        elementwise=recipe.optimizer in ELEMENTWISE,
        lr_scheduler=lr_scheduler,
        max_grad_norm=recipe.max_grad_norm,
        config=engine_settings(config, model, topology=topology),
        device=device,
        dist_context=dist_context,
    )
    try:
        yield engine
    finally:
        engine.close()
