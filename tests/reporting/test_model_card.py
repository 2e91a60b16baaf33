"""The model card of a run: what was learned, in order, and from which public data."""

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


def card(run_config: RunConfig, *overrides: str, **changed: Any) -> ModelCard:
    values = {"config": run_config.to_dict(), "identity": run_identity(run_config), **changed}
    return ModelCard(model_card(result("imsm", *overrides, **values)))


def test_a_sequence_lists_all_its_tasks() -> None:
    found = card(final_stage(config("backbone=llama3", "task_sequence=[mrpc,ropes]")))
    assert found.data.datasets == ["nyu-mll/glue", "allenai/ropes"]
    assert "llama3 with lora, trained on mrpc, then ropes (method imsm, seed 0)" in found.text
    assert "Last stage (ropes): 12 steps on 100 examples, recipe" in found.text


def test_synthetic_data_is_not_a_public_dataset() -> None:
    found = card(final_stage(config("task_sequence=[mrpc,ropes]")))
    assert found.data.datasets is None
    assert "mrpc, ropes: synthetic data of the miniature" in found.text


def test_a_local_folder_is_not_a_public_dataset_but_a_mirror_is(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    found = card(config("backbone=llama3", "data=mrpc", f"data.local_dir={tmp_path}"))
    assert found.data.datasets is None
    assert "mrpc: data from a local folder." in found.text
    run_config = config("backbone=llama3", "data=mrpc")
    mirrored = run_config.data.model_copy(update={"mirror": str(tmp_path)})
    found = card(run_config.model_copy(update={"data": mirrored}))
    assert found.data.datasets == ["nyu-mll/glue"] and "local folder" not in found.text


def test_a_frozen_adapter_and_replay_are_described() -> None:
    replayed = card(config("backbone=llama3", "data=mrpc", "peft=loramoe_blc_replay"))
    assert replayed.data.datasets == ["nyu-mll/glue", "stanfordnlp/web_questions"]
    assert "trained on mrpc with replay of webq (method" in replayed.text
    adapter = config("backbone=llama3", "data=mrpc")
    frozen = FrozenAdapterConfig(tasks=["mrpc"], identity=run_identity(adapter))
    gate = config("backbone=llama3", "data=cola", "trainer.gate_learning_rate=0.5")
    found = card(gate.model_copy(update={"frozen_run": frozen}))
    assert "trained on mrpc, with a gate for that frozen adapter trained on cola (method" in found.text
    assert "Gate only: 12 steps on 100 examples" in found.text
    assert "learning rate 0.5." in found.text
    assert found.data.datasets == ["nyu-mll/glue"]


@pytest.mark.parametrize("name", ["mrpc", "cola"])
def test_a_run_of_one_task(name: str) -> None:
    found = card(config("backbone=llama3", f"data={name}"))
    assert f"trained on {name} (method imsm, seed 0)" in found.text
    assert "\n12 steps on 100 examples, recipe" in found.text
    assert "| webq" in found.text and "- backbone ffff" in found.text


def test_names_are_text_without_control_characters() -> None:
    record = result("imsm", name="<b>\x1b[2J")
    assert r"# &lt;b>\x1b[2J" in model_card(record) and "\x1b" not in model_card(record)


def test_tests_at_chance_are_named() -> None:
    record = result("imsm")
    originals = {
        task: {**entry, "above_chance": task != "mrpc"} for task, entry in record["evaluation"]["tasks"].items()
    }
    record["evaluation"]["original"] = originals
    text = model_card(record)
    assert "at chance on mrpc, which" in text and "stability in the report is over webq, freebaseqa, multirc." in text
    for entry in originals.values():
        del entry["above_chance"]
    assert "at chance" not in model_card(record)


def test_a_quantized_original_is_named() -> None:
    text = card(config("backbone.quantization=nf4")).text
    assert "mini in 4 bits (nf4) with lora" in text and "is the quantized one, not the published weights" in text
    assert "quantized" not in card(config()).text
