"""Every use of DeepSpeed that is not public API, with its reason; the version range is checked."""

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from packaging.specifiers import SpecifierSet

from imsm.utils.errors import UserError

SUPPORTED = SpecifierSet(">=0.18,<0.20")
"""The range of the `deepspeed` extra in pyproject.toml: the internals below were checked in it."""


def load_deepspeed(*, device: torch.device, local_rank: int) -> ModuleType:
    """Import DeepSpeed, quietly and without a compiled extension.

    Raises:
        UserError: The installed version is outside `SUPPORTED`.
    """
    version = importlib.metadata.version("deepspeed")
    if not SUPPORTED.contains(version, prereleases=True):
        raise UserError(f"deepspeed={version}: not supported; install 'deepspeed{SUPPORTED}'")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # deepspeed.initialize requires LOCAL_RANK, and guesses the accelerator with a warning
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    # the import resets the level
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Without this entry DeepSpeed compiles an extension into the home directory; gloo works without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    module: ModuleType = deepspeed
    return module


def grad_norm_overflowed(zero_optimizer: Any) -> bool:
    """Return whether the last step was skipped; `get_global_grad_norm` then has a stale value."""
    return bool(zero_optimizer.overflow)


def local_partitions(zero_optimizer: Any, *, stage: int) -> list[torch.Tensor]:
    """Return this process's flat fp32 partitions, the keys of the inner optimizer's state.

    Public API has whole parameters only, but the step count is stored once per partition.
    """
    if stage < 3:
        return list(zero_optimizer.single_partition_of_fp32_groups)
    return list(zero_optimizer.fp32_partitioned_groups_flat)


def link_optimizer_state(zero_optimizer: Any, *, stage: int) -> None:
    """Link parameters to the optimizer state, which `safe_get_full_optimizer_state` reads.

    Stages 1 and 2 do this after the first group's first step, when only that group has state.
    """
    if stage < 3:
        zero_optimizer._lazy_init_hp_params_optimizer_state()


def gather_params(params: Iterable[Any], *, owner: object) -> None:
    """Gather sharded parameters and keep them until `release_params`, for losses on their values.

    During its first forwards, while it records their order, stage 3 also releases parameters
    below the persistence threshold, unless a submodule is registered as using them.
    """
    params = list(params)
    sharded = [param for param in params if param.ds_status.name == "NOT_AVAILABLE"]
    if sharded:
        sharded[0].all_gather(sharded)
    for param in params:
        param.ds_active_sub_modules.add(owner)


def release_params(params: Iterable[Any], *, owner: object) -> None:
    """Let stage 3 release the parameters again."""
    for param in params:
        param.ds_active_sub_modules.discard(owner)


def free_params(module: torch.nn.Module) -> None:
    """Free the storage of a destroyed engine's parameters, to which stage 3 keeps references."""
    for param in module.parameters():
        param.data = param.data.new_empty(0)
        if hasattr(param, "ds_tensor"):
            param.ds_tensor = None
