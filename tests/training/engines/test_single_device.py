"""The single-process engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.single_device import SingleDeviceEngine, choose_device, peak_memory, reset_peak_memory
from imsm.training.train_step import model_inputs
from imsm.utils.errors import UserError
from tests.training.tiny_run import TinyRun, assert_equal_trainables, tiny_examples


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    run = TinyRun(tmp_path, method="lora")
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return run


def test_gradients_are_clipped_once_per_step(run: TinyRun) -> None:
    grads = [p.grad for p in run.model.parameters() if p.requires_grad]
    expected = float(torch.nn.utils.get_total_norm(grads))
    with run.engine.full_grads():
        assert float(torch.nn.utils.get_total_norm(grads)) == pytest.approx(1.0, rel=1e-4)
    assert run.engine.step() == pytest.approx(expected)
    assert all(p.grad is None for p in run.model.parameters())


def test_a_step_advances_the_learning_rates(run: TinyRun) -> None:
    assert run.engine.learning_rates() == {"adapter": 0.0, "gate": 0.0}  # warmup
    run.engine.step()
    assert run.engine.learning_rates() == {"adapter": 0.01, "gate": 0.02}


def test_a_non_finite_gradient_changes_nothing(run: TinyRun) -> None:
    before = {name: value.clone() for name, value in run.engine.trainable_state_dict().items()}
    next(p for p in run.model.parameters() if p.requires_grad).grad.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="inf"):
        run.engine.step()
    assert all(torch.equal(value, before[name]) for name, value in run.engine.trainable_state_dict().items())


def fp16_engine(run: TinyRun) -> SingleDeviceEngine:
    return SingleDeviceEngine(
        run.model,
        optimizer=run.engine.optimizer,
        lr_scheduler=run.engine.lr_scheduler,
        max_grad_norm=None,
        device=torch.device("cpu"),
        fp16=True,
    )


def test_loss_scaling_changes_no_gradient(tmp_path: Path) -> None:
    """The tiny model is in float32; its linear layers compute in float16, gradients are unscaled."""
    inputs = model_inputs(torch.device("cpu"), tiny_examples(), pad_id=0, hidden_state_cache=None)
    plain, scaled = (TinyRun(tmp_path / name, method="lora") for name in ("plain", "scaled"))
    scaled.engine = fp16_engine(scaled)
    norms = []
    for run in (plain, scaled):
        run.engine.max_grad_norm = None
        run.engine.backward(run.engine.forward(**inputs).loss, last=True)
        norms.append(run.engine.step())
    assert norms[1] == pytest.approx(norms[0], rel=2e-2)
    assert {p.dtype for p in scaled.model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first step is skipped
def test_a_step_that_overflows_is_skipped_and_lowers_the_scale(run: TinyRun) -> None:
    engine = fp16_engine(run)
    before = {name: value.clone() for name, value in engine.trainable_state_dict().items()}
    parameter = next(p for p in run.model.parameters() if p.requires_grad)
    engine.scaler.scale(torch.ones(()))  # creates the scale
    scale = engine.scaler.get_scale()
    parameter.grad.fill_(float("inf"))
    with engine.full_grads():
        assert not parameter.grad.any()
    assert engine.step() == float("inf")
    assert engine.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[name]) for name, value in engine.trainable_state_dict().items())
    assert engine.learning_rates() == {"adapter": 0.01, "gate": 0.02}  # the schedule advances, as in the paper's code
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    engine.step()
    assert not all(torch.equal(value, before[name]) for name, value in engine.trainable_state_dict().items())


def test_an_overflow_at_the_lowest_scale_is_an_error(run: TinyRun) -> None:
    engine = fp16_engine(run)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    engine.scaler.scale(torch.ones(()))
    next(p for p in run.model.parameters() if p.requires_grad).grad.fill_(float("inf"))
    with pytest.raises(NonFiniteError):
        engine.step()


def test_a_resumed_fp16_training_is_bit_equal(tmp_path: Path) -> None:
    def run(folder: str) -> TinyRun:
        built = TinyRun(tmp_path / folder)
        built.engine = fp16_engine(built)
        built.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
        return built

    full, first = run("full"), run("parts")
    full.train()
    first.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = run("parts")
    second.train()
    assert first.losses + second.losses == full.losses
    assert second.engine.scaler.get_scale() == full.engine.scaler.get_scale() == 2.0**15
    assert_equal_trainables(second, full)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_choose_device_without_a_gpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"engine\.device=cuda"):
        choose_device("cuda")


def test_peak_memory_is_measured_since_the_reset() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory(device)
    values = torch.ones(50_000_000)
    assert values.sum() == 50_000_000
    after = peak_memory(device)
    assert before is not None and after is not None
    assert after - before > 150_000_000
