"""A checkpoint at the paper's scale: Llama 3 8B by its shape, its weights without values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.plan.plan import build_plan_model
from imsm.training.checkpoint import TrainingState, save_checkpoint
from imsm.training.engines.single_device import SingleDeviceEngine
from imsm.training.optimizer import build_optimizer, build_lr_scheduler
from tests.helpers.config import config


def with_values(model: SiameseForCausalLM) -> SiameseForCausalLM:
    """Give adapter and gate values; the backbone has none."""
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad:
            place, _, own = name.rpartition(".")
            setattr(model.get_submodule(place), own, nn.Parameter(torch.randn(parameter.shape)))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["imsm", "peft"])
def test_llama3_with_lora(tmp_path: Path, method: str) -> None:
    model, _ = build_plan_model(config("backbone=llama3", f"method={method}"))
    assert model is not None
    model = with_values(model)
    optimizer = build_optimizer(model, name="adamw", learning_rate=1e-3, gate_learning_rate=None, weight_decay=0.0)
    engine = SingleDeviceEngine(
        model,
        optimizer=optimizer,
        lr_scheduler=build_lr_scheduler(optimizer, lr_scheduler_type="cosine", warmup_ratio=0.1, num_training_steps=10),
        max_grad_norm=1.0,
        device=torch.device("cpu"),
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    engine.step()
    place = save_checkpoint(
        tmp_path, state=TrainingState(step=1), metrics={}, engine=engine, callbacks=None, identity={}
    )
    size = sum(file.stat().st_size for file in place.iterdir())
    trainable = sum(4 * p.numel() for p in trained)
    assert trainable == 4 * (6_979_584 if method == "imsm" else 6_815_744)
    assert 3 * trainable < size < 3.1 * trainable  # values and two moments
