"""The single-process engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imsm.training.engines.base import NonFiniteError
from imsm.training.engines.single_device import choose_device, peak_memory, reset_peak_memory
from imsm.utils.errors import UserError
from tests.training.tiny_run import TinyRun


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
