"""Optimizer parameter groups and LR schedules."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.training.optimizer import build_lr_scheduler, build_optimizer
from tests.models.siamese.tiny import tiny_siamese
from tests.training.tiny_run import TinyRun


def test_the_gate_is_a_group_with_its_own_learning_rate(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    rates = {group["name"]: group["initial_lr"] for group in run.engine.optimizer.param_groups}
    assert rates == {"adapter": 1e-2, "gate": 2e-2}
    groups = {group["name"]: {id(p) for p in group["params"]} for group in run.engine.optimizer.param_groups}
    assert groups["gate"] == {id(p) for p in run.model.gate.parameters()}
    assert groups["adapter"] | groups["gate"] == {id(p) for p in run.model.parameters() if p.requires_grad}
    assert not groups["adapter"] & groups["gate"]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_without_a_gate_there_is_one_group(name: str) -> None:
    model = tiny_siamese("llama", "lora", gate=None)
    optimizer = build_optimizer(model, name=name, learning_rate=0.1, gate_learning_rate=None, weight_decay=0.0)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("adapter", 0.1)]


@pytest.mark.parametrize(("rounding", "expected"), [("up", [0, 1 / 3, 2 / 3, 1, 1]), ("down", [0, 1 / 2, 1, 1, 1])])
def test_the_warmup_is_a_ratio_of_the_training_steps(rounding: str, expected: list[float]) -> None:
    """0.25 * 9 steps are 3 or 2 warm-up steps."""
    model = tiny_siamese("llama", "lora", gate=None)
    optimizer = build_optimizer(model, name="adamw", learning_rate=1.0, gate_learning_rate=None, weight_decay=0.0)
    lr_scheduler = build_lr_scheduler(
        optimizer,
        lr_scheduler_type="constant_with_warmup",
        warmup_ratio=0.25,
        warmup_rounding=rounding,
        num_training_steps=9,
    )
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr_scheduler.step()
    assert rates == pytest.approx(expected)
