"""DeepSpeed's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from imsm.training.engines.deepspeed_config import deepspeed_config


def config(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "stage": 2,
        "offload": False,
        "pin_memory": False,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_grad_norm": 0.5,
        "largest_param": 100,
        "num_trainable": 5_000,
        "reduce_bucket_size": 1_000,
        "prefetch_bucket_size": 300,
        "max_live_parameters": 700,
    }
    return deepspeed_config(**{**options, **changes})


@pytest.mark.parametrize(
    ("largest_param", "num_trainable", "bucket_size"), [(100, 5_000, 1_000), (100, 500, 500), (2_000, 5_000, 2_000)]
)
def test_a_bucket_holds_the_largest_parameter_and_no_more_than_all(
    largest_param: int, num_trainable: int, bucket_size: int
) -> None:
    zero = config(largest_param=largest_param, num_trainable=num_trainable)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket_size


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_only_stage_3_offloads_parameters(stage: int, offload: bool) -> None:
    zero = config(stage=stage, offload=offload, pin_memory=True)["zero_optimization"]
    assert zero.get("offload_optimizer") == ({"device": "cpu", "pin_memory": True} if offload else None)
    assert ("offload_param" in zero) == (offload and stage == 3)
    assert ("stage3_max_live_parameters" in zero) == (stage == 3)


def test_stage_3_does_not_shard_trainable_parameters() -> None:
    assert config(stage=3)["zero_optimization"]["stage3_param_persistence_threshold"] == 100


def test_without_clipping_deepspeed_gets_zero() -> None:
    assert config(max_grad_norm=None)["gradient_clipping"] == 0.0
    assert config()["gradient_clipping"] == 0.5
