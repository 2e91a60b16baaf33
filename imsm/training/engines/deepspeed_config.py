"""The DeepSpeed configuration of a run; `mode=plan` prints it."""

from typing import Any


def deepspeed_config(
    *,
    stage: int,
    offload: bool,
    pin_memory: bool,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    max_grad_norm: float | None,
    largest_param: int,
    num_trainable: int,
    reduce_bucket_size: int,
    prefetch_bucket_size: int,
    max_live_parameters: int,
) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`.

    bf16 and fp16 are off: they would also cast adapter and gate, which stay in float32. Stage 3
    shards the frozen weights; trainable parameters stay replicated (the persistence threshold is
    the size of the largest one), and only their gradients and optimizer state are sharded.
    ``offload`` keeps optimizer state, and in stage 3 the sharded weights, in CPU memory. Sizes count
    elements: ``reduce_bucket_size`` per communication, ``prefetch_bucket_size`` gathered ahead and
    ``max_live_parameters`` kept gathered by stage 3. ``max_grad_norm=None`` disables clipping.
    """
    # no larger than the trainables, since DeepSpeed allocates the bucket; a parameter must fit in it
    bucket_size = max(largest_param, min(num_trainable, reduce_bucket_size))
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        # if True, the loss can be 0 right after a checkpoint
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket_size,
        "allgather_bucket_size": bucket_size,
        "round_robin_gradients": False,
    }
    cpu_offload = {"device": "cpu", "pin_memory": pin_memory}
    if offload:
        zero["offload_optimizer"] = dict(cpu_offload)
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": largest_param,
            "stage3_prefetch_bucket_size": prefetch_bucket_size,
            "stage3_max_live_parameters": max_live_parameters,
            "stage3_max_reuse_distance": max_live_parameters,
            "sub_group_size": max_live_parameters,
        }
        if offload:
            zero["offload_param"] = dict(cpu_offload)
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": 0.0 if max_grad_norm is None else max_grad_norm,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
    }
