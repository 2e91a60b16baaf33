"""Processes, device and micro-batch size of a run."""

from __future__ import annotations

import pytest
import torch

from imsm.distributed.context import DistributedContext
from imsm.pipeline.engine import build_engine, local_device, micro_batch_size, topology_of
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.models.siamese.tiny import tiny_siamese


@pytest.mark.parametrize(
    ("micro_batch", "processes", "expected"), [("null", 1, 16), ("null", 4, 4), ("2", 4, 2), ("8", 4, 4), ("8", 3, 6)]
)
def test_a_micro_batch_is_at_most_the_share_of_a_process(micro_batch: str, processes: int, expected: int) -> None:
    run_config = config("trainer.global_batch_size=16", f"trainer.micro_batch_size={micro_batch}")
    assert micro_batch_size(run_config, processes=processes) == expected


def test_one_process_without_gpus() -> None:
    assert not topology_of(config(), gpus=0).distributed


def test_deepspeed_uses_every_visible_gpu() -> None:
    topology = topology_of(config("engine=zero2"), gpus=4)
    assert topology.distributed and topology.world_size == 4


def test_a_wrong_number_of_started_processes_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^engine.nproc_per_node=4, engine.nnodes=1: 2 processes were started"):
        topology_of(config("engine=zero2", "engine.nproc_per_node=4"), gpus=4, joined=2)


def test_gpus_of_other_nodes_must_be_given_if_none_is_visible() -> None:
    with pytest.raises(UserError, match=r"^engine.nnodes=2: "):
        topology_of(config("engine=zero2", "engine.nnodes=2"), gpus=0)


def test_a_plan_assumes_the_requested_gpus() -> None:
    run_config = config("engine=zero2", "engine.nproc_per_node=8", "engine.device=cuda")
    assert topology_of(run_config, gpus=0, elsewhere=True).world_size == 8


FP16 = ("backbone=llama3", "backbone.dtype=float16", "trainer.mixed_precision=fp16")


@pytest.mark.parametrize(("gpus", "fix"), [(0, "needs a GPU"), (2, "engine=single")])
def test_fp16_needs_one_process_with_a_gpu(gpus: int, fix: str) -> None:
    with pytest.raises(UserError, match=f"^trainer.mixed_precision=fp16: .*{fix}"):
        topology_of(config(*FP16), gpus=gpus)
    assert topology_of(config(*FP16, "engine=single"), gpus=1).device == "cuda"
    assert not topology_of(config(*FP16, "mode=evaluate"), gpus=0).distributed


def test_a_process_uses_the_configured_device() -> None:
    assert local_device(config("engine.device=cpu"), DistributedContext()) == torch.device("cpu")


def test_one_process_trains_with_the_single_device_engine() -> None:
    model = tiny_siamese()
    run_config = config("trainer.learning_rate=0.01", "trainer.gate_learning_rate=0.02")
    with build_engine(
        run_config, model, scheduled_steps=2, device=torch.device("cpu"), dist_context=DistributedContext()
    ) as engine:
        assert engine.trainable_state_dict().keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_token_budget_bounds_the_examples_of_a_pass() -> None:
    budget = config("trainer.micro_batch_tokens=400", "trainer.global_batch_size=16")
    sizes = [micro_batch_size(budget, processes=1, tokens=tokens) for tokens in (500, 200.0, 30, 1)]
    assert sizes == [1, 2, 13, 16]
    assert micro_batch_size(budget, processes=4, tokens=30) == 4
