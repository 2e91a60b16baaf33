"""Training on the device: equal streams, equal losses, equal bits after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imsm.data.batching import MicroBatching
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.training.acceleration import accelerated
from imsm.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from imsm.training.determinism import set_deterministic_environment
from imsm.training.train_step import train_step
from scripts.bench.syncs import micro_batch_reads
from tests.gpu.tiny import (
    DEVICE,
    both_dtypes,
    engine_of,
    examples,
    lora_with_dropout,
    losses,
    model_on_device,
    needs_gpu,
    padded_inputs,
)
from tests.models.siamese.tiny import tiny_siamese

pytestmark = pytest.mark.gpu
determinism = pytest.mark.parametrize(
    "deterministic",
    [True, pytest.param(False, marks=pytest.mark.xfail(DEVICE.type == "cuda", reason="not promised on a GPU"))],
)
if DEVICE.type == "cuda":
    set_deterministic_environment()  # before CUDA starts


@both_dtypes
def test_without_the_adapter_the_decoder_is_the_backbone_bit_for_bit(dtype: torch.dtype) -> None:
    model = model_on_device(dtype)
    inputs, _ = padded_inputs("right")
    with torch.no_grad():
        original = model.streams.hidden_states(inputs, stream="original", cache=None)
        with model.adapted.disable_adapter():
            backbone = model.streams.decoder(**inputs, use_cache=False).last_hidden_state
    assert torch.equal(original, backbone)


@both_dtypes
def test_before_the_first_update_both_streams_are_equal_and_the_gate_has_no_gradient(dtype: torch.dtype) -> None:
    """The first steps run without the hidden-state cache because of it (`imsm.training.trainer`)."""
    model = model_on_device(dtype, lora_with_dropout(0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    engine = engine_of(model)
    model.train()
    train_step([examples()[:8]], step=1, engine=engine, callbacks=None, micro_batching=MicroBatching(size=8), pad_id=0)
    gate = [engine.optimizer.state[p]["exp_avg"] for p in model.gate.parameters() if p in engine.optimizer.state]
    assert gate and not any(moment.any() for moment in gate)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_both_streams_in_one_pass_equal_two_passes(dtype: torch.dtype, tolerance: float) -> None:
    model = model_on_device(dtype)
    inputs, is_token = padded_inputs("left")
    with torch.inference_mode():
        together = model.streams.both_hidden_states(inputs, cache=None)
        model.streams.batch_both = False
        separate = model.streams.both_hidden_states(inputs, cache=None)
    for one, other in zip(together, separate, strict=True):
        difference = (one[is_token].float() - other[is_token].float()).norm()
        assert difference <= tolerance * other[is_token].float().norm()


def test_losses_equal_those_of_the_cpu() -> None:
    assert losses(model_on_device()) == pytest.approx(losses(tiny_siamese()), rel=2e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_hidden_state_cache_does_not_change_losses(dtype: torch.dtype, tolerance: float) -> None:
    cache = compute_in_memory(model_on_device(dtype), examples(), pad_id=0)
    assert not cache.hidden_states.is_cuda
    cached = losses(model_on_device(dtype), cache=cache)
    assert cached == pytest.approx(losses(model_on_device(dtype)), rel=tolerance)


@both_dtypes
@determinism
def test_two_trainings_are_equal_bit_for_bit(dtype: torch.dtype, deterministic: bool) -> None:
    one, other = (losses(model_on_device(dtype), deterministic=deterministic) for _ in range(2))
    assert one == other


@both_dtypes
@determinism
def test_a_resumed_training_with_dropout_is_equal_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, deterministic: bool
) -> None:
    """The random state of the device is part of the checkpoint."""
    torch.manual_seed(0)
    model = model_on_device(dtype, lora_with_dropout(0.3))
    engine = engine_of(model)
    options: dict[str, Any] = {"steps": 3, "deterministic": deterministic}
    losses(model, engine=engine, **options)
    state = TrainingState(step=3)
    checkpoint = save_checkpoint(tmp_path, state=state, metrics={}, engine=engine, callbacks=None, identity={})
    expected = losses(model, engine=engine, first=4, **options)
    torch.manual_seed(99)
    resumed = model_on_device(dtype, lora_with_dropout(0.3))
    engine = engine_of(resumed)
    load_checkpoint(checkpoint, engine=engine, callbacks=None)
    assert losses(resumed, engine=engine, first=4, **options) == expected
    for (name, one), other in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("packed", [False, True])
def test_token_budgets_and_packed_rows_do_not_change_losses(packed: bool) -> None:
    expected = losses(model_on_device(), steps=4)
    model = model_on_device()
    with accelerated(model, packing=packed):
        found = losses(model, steps=4, micro_batching=MicroBatching(size=8, tokens=32, packed=packed))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_further_micro_batch_does_not_make_the_host_wait(packed: bool) -> None:
    model = model_on_device().train()
    options: dict[str, Any] = {"engine": engine_of(model), "callbacks": None, "pad_id": 0}
    options["micro_batching"] = MicroBatching(size=4, packed=packed)

    def step(micro_batches: int) -> None:
        train_step([examples()[: 4 * micro_batches]], step=9, **options)

    with accelerated(model, packing=packed):
        assert micro_batch_reads(model, step) == 0


@needs_gpu
def test_ligers_kernels_change_losses_by_rounding() -> None:
    pytest.importorskip("liger_kernel")
    expected = losses(model_on_device(), steps=4)
    model = model_on_device()
    with accelerated(model, liger_kernel=True):
        assert losses(model, steps=4) == pytest.approx(expected, rel=1e-3)


def test_gradient_checkpointing_does_not_change_losses() -> None:
    plain = losses(model_on_device(), steps=3)
    model = model_on_device()
    model.activation_checkpointing_enable()
    assert losses(model, steps=3) == pytest.approx(plain, rel=1e-5)


@needs_gpu
def test_a_checkpoint_of_a_gpu_continues_on_the_cpu(tmp_path: Path) -> None:
    model = model_on_device()
    engine = engine_of(model)
    losses(model, engine=engine, steps=2)
    state = TrainingState(step=2)
    checkpoint = save_checkpoint(tmp_path, state=state, metrics={}, engine=engine, callbacks=None, identity={})
    expected = losses(model, engine=engine, steps=2, first=3)
    resumed = tiny_siamese()
    engine = engine_of(resumed)
    load_checkpoint(checkpoint, engine=engine, callbacks=None)
    assert losses(resumed, engine=engine, steps=2, first=3) == pytest.approx(expected, rel=2e-4)
    assert DEVICE.type == "cuda" and next(resumed.parameters()).device.type == "cpu"
