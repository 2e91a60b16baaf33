"""The model card of a run: what was learned, in order, and which public data that were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from imsm.config.identity import run_identity
from imsm.config.schema import FrozenAdapterConfig, RunConfig
from imsm.config.stages import final_stage
from imsm.reporting.model_card import model_card
from tests.helpers.config import config, result


def card(chosen: RunConfig, *overrides: str, **changed: Any) -> ModelCard:
    """Of a finished run."""
    made = {"config": chosen.to_dict(), "identity": run_identity(chosen), **changed}
    return ModelCard(model_card(result("imsm", *overrides, **made)))


def test_a_sequence_names_all_that_it_learned() -> None:
    found = card(final_stage(config("backbone=llama3", "task_sequence=[mrpc,ropes]")))
    assert found.data.datasets == ["nyu-mll/glue", "allenai/ropes"]
    assert "llama3 with lora, trained on mrpc, then ropes (method imsm, seed 0)" in found.text
    assert "The last stage, ropes: 12 steps on 100 examples, recipe" in found.text


def test_invented_data_are_no_public_dataset() -> None:
    found = card(final_stage(config("task_sequence=[mrpc,ropes]")))
    assert found.data.datasets is None
    assert "mrpc, ropes: the miniature's invented data, not the public dataset" in found.text


def test_a_folder_of_ones_own_is_no_public_dataset_and_a_mirror_is_one(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    found = card(config("backbone=llama3", "data=mrpc", f"data.local_dir={tmp_path}"))
    assert found.data.datasets is None
    assert "mrpc: data from a folder of one's own." in found.text
    chosen = config("backbone=llama3", "data=mrpc")
    mirrored = chosen.data.model_copy(update={"mirror": str(tmp_path)})
    found = card(chosen.model_copy(update={"data": mirrored}))
    assert found.data.datasets == ["nyu-mll/glue"] and "of one's own" not in found.text


def test_a_frozen_adapter_and_replay_are_told() -> None:
    source = config("backbone=llama3", "data=mrpc", "peft=loramoe_blc_replay")
    replayed = card(source)
    assert replayed.data.datasets == ["nyu-mll/glue", "stanfordnlp/web_questions"]
    assert "trained on mrpc with questions of webq (method" in replayed.text
    before = config("backbone=llama3", "data=mrpc")
    run = FrozenAdapterConfig(tasks=["mrpc"], identity=run_identity(before))
    gate = config("backbone=llama3", "data=cola", "trainer.gate_learning_rate=0.5")
    found = card(gate.model_copy(update={"frozen_run": run}))
    assert "trained on mrpc, and a gate beside that adapter on cola (method" in found.text
    assert "The gate alone: 12 steps on 100 examples" in found.text
    assert "learning rate 0.5." in found.text
    assert found.data.datasets == ["nyu-mll/glue"]


@pytest.mark.parametrize("name", ["mrpc", "cola"])
def test_a_run_of_one_task_reads_as_ever(name: str) -> None:
    found = card(config("backbone=llama3", f"data={name}"))
    assert f"trained on {name} (method imsm, seed 0)" in found.text
    assert "\n12 steps on 100 examples, recipe" in found.text
