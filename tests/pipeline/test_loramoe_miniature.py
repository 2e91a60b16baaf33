"""LoRAMoE from the command line's configuration to its report, on the miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.run import run_experiment
from imsm.utils.run_dir import RunDir
from tests.helpers.config import config
from tests.models.adapters.moe import layers_of


@pytest.mark.slow
@pytest.mark.parametrize("method", ["peft", "imsm"])
def test_it_learns_with_constraint_and_replay(method: str, tmp_path: Path) -> None:
    run = config(
        "peft=loramoe_blc_replay",
        f"method={method}",
        f"run_dir={tmp_path / 'run'}",
        "data.max_train_examples=40",
        "trainer.num_epochs=2",
        "trainer.micro_batch_size=8",
        "trainer.gradient_checkpointing=true",
        "evaluation.limit=2",
        "evaluation.tasks=[webq]",
    )
    run_experiment(run, runs_root=tmp_path)
    folder = RunDir(tmp_path / "run")
    lines = [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "auxiliary_loss" in line]
    assert len(steps) == 2 * 3  # 44 examples in batches of 16
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert all(0 < step["auxiliary_loss"] < 28 * 0.1 for step in steps)
    training = json.loads(folder.trained.read_text())
    assert training["replay"]["examples"] == 4
    model = SiameseForCausalLM.from_pretrained(folder.path)
    assert len(layers_of(model)) == 28
    assert all(layer.up.abs().max() > 0 for layer in layers_of(model))
