"""Time estimates: counted operations compared with those of real forward passes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from imsm.distributed.topology import Topology
from imsm.models.builder import wrap_backbone
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.plan import time as plan_time
from imsm.pipeline.plan.data import LengthStats
from imsm.pipeline.plan.time import device_speed, estimate_time, workload
from tests.helpers.config import config

TRAIN = LengthStats(examples=100, mean=(30.0, 10.0), longest=(60, 20), source="counted")
TESTS = {"gsm8k": LengthStats(examples=50, mean=(30.0, 10.0), longest=(60, 20), source="counted")}
ONE_CPU = Topology(stage=0, offload=False, device="cpu", nproc_per_node=1, nnodes=1)


@pytest.fixture(scope="module")
def model() -> SiameseForCausalLM:
    shape = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return wrap_backbone(
        LlamaForCausalLM(shape), backbone={}, adapter=None, gate=None, pooling="mean", stream="original", seed=0
    )


def counted(model: SiameseForCausalLM, tokens: int) -> float:
    """Return the operations of a forward pass with all logits, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.backbone(torch.zeros(1, tokens, dtype=torch.long))
    return counter.get_total_flops()


def test_evaluation_operations_are_those_that_torch_counts(model: SiameseForCausalLM) -> None:
    load = workload(config("method=original"), model, train=None, tests=TESTS, rows=1)

    assert load is not None
    # 30 prompt tokens, 10 of the response and 10 of the accepted answer; logits of 20 tokens only
    all_logits = 50 * counted(model, 50)
    unneeded = 50 * 30 * 2 * 200 * 64
    assert load.evaluation_flops == pytest.approx(all_logits - unneeded, rel=0.1)
    assert load.training_flops == 0


def test_training_passes_follow_the_method_and_the_cache(model: SiameseForCausalLM) -> None:
    def training(*overrides: str) -> float:
        load = workload(config("trainer.num_epochs=3", *overrides), model, train=TRAIN, tests={}, rows=4)
        assert load is not None
        return load.training_flops

    peft = training("method=peft")

    # forward and backward in each epoch; the original once with the cache, else in each epoch
    assert training("method=imsm") == pytest.approx(peft * 7 / 6)
    assert training("method=imsm", "hidden_state_cache=off") == pytest.approx(peft * 9 / 6)
    assert training("method=peft", "trainer.gradient_checkpointing=true") == pytest.approx(peft * 9 / 6)


def test_every_kept_checkpoint_is_evaluated_like_the_trained_model(model: SiameseForCausalLM) -> None:
    def evaluation(*overrides: str) -> float:
        chosen = config("trainer.num_epochs=3", "trainer.global_batch_size=16", *overrides)
        load = workload(chosen, model, train=TRAIN, tests=TESTS, rows=4)
        assert load is not None
        return load.evaluation_flops

    kept = ["evaluation.checkpoints=true", "trainer.save_steps=11"]  # of 21
    original = evaluation("method=original")
    # one checkpoint in the middle; the last step is the trained model
    assert evaluation("method=peft", *kept) == pytest.approx(3 * original)
    assert evaluation("method=imsm", *kept) == pytest.approx(5 * original)


def test_without_a_number_of_examples_the_time_is_unknown(model: SiameseForCausalLM) -> None:
    unknown = LengthStats(examples=None, mean=None, longest=(60, 20), source="limits")

    text = estimate_time(config(), model, train=unknown, tests={}, topology=ONE_CPU)

    assert text.startswith("unknown")


def test_upper_limits_are_reported_as_such(model: SiameseForCausalLM) -> None:
    limits = LengthStats(examples=100, mean=None, longest=(60, 20), source="limits")

    assert estimate_time(config(), model, train=limits, tests=TESTS, topology=ONE_CPU).startswith("at most about")
    assert estimate_time(config(), model, train=TRAIN, tests=TESTS, topology=ONE_CPU).startswith("about")


def test_a_gpu_that_is_not_visible_is_assumed(model: SiameseForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    speed = device_speed(model, device="cuda", rows=100)

    assert speed.name == f"{plan_time.ASSUMED_GPU} (assumed)"


def test_a_visible_gpu_is_found_by_its_name(model: SiameseForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")

    speed = device_speed(model, device="cuda", rows=100)

    assert speed.name == "NVIDIA H100 80GB HBM3"
    assert speed.bandwidth == plan_time.GPUS["H100"][2]


def test_more_processes_take_less_time(model: SiameseForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    eight = Topology(stage=2, offload=False, device="cuda", nproc_per_node=8, nnodes=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert "8 × A100 (assumed)" in estimate_time(config(), model, train=TRAIN, tests=TESTS, topology=eight)
