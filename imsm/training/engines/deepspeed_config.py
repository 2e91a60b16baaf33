"""DeepSpeed's configuration, every number of it decided here; `mode=plan` shows it."""

from __future__ import annotations

from typing import Any


def deepspeed_config(
    *,
    stage: int,
    offload: bool,
    pinned: bool,
    micro_batch_size: int,
    accumulation: int,
    clip_norm: float | None,
    largest: int,
    trainable: int,
    bucket_elements: int,
    prefetch_elements: int,
    live_elements: int,
) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` takes.

    bf16 and fp16 are off: they would cast adapter and gate too, which stay in float32. Stage 3
    shares out the frozen weights; a trainable parameter stays whole in every process (the
    persistence threshold is the largest one's size), its gradient and optimizer state are shared.

    Args:
        stage: of ZeRO, 1 to 3.
        offload: keep optimizer state, and in stage 3 the shared weights, in the CPU's memory.
        pinned: in memory that a GPU can read.
        micro_batch_size: examples of one pass of one process.
        accumulation: passes of one process in a full step.
        clip_norm: of the gradients; None: no clipping.
        largest: values of the largest trainable parameter.
        trainable: values of all of them.
        bucket_elements: values sent at once, at most.
        prefetch_elements: values that stage 3 gathers ahead.
        live_elements: gathered values that stage 3 keeps at most.
    """
    bucket = max(largest, min(trainable, bucket_elements))
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": False,  # with it a loss can be 0 right after a checkpoint
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "round_robin_gradients": False,
    }
    place = {"device": "cpu", "pin_memory": pinned}
    if offload:
        zero["offload_optimizer"] = dict(place)
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": largest,
            "stage3_prefetch_bucket_size": prefetch_elements,
            "stage3_max_live_parameters": live_elements,
            "stage3_max_reuse_distance": live_elements,
            "sub_group_size": live_elements,
        }
        if offload:
            zero["offload_param"] = dict(place)
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if clip_norm is None else clip_norm,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
    }
