"""A whole run by its command, by one process and by two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow
COMMAND = [
    sys.executable, "-m", "imsm.run", "data.max_train_examples=96", "trainer.num_epochs=1",
    "evaluation.limit=12", "evaluation.tasks=[target,webq]", "evaluation.batch_size=4",
]  # fmt: skip
TWO = ["engine.nproc_per_node=2", "engine.device=cpu"]
LIMIT = 240


def started(root: Path, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"IMSM_RUNS": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(root: Path, *more: str, code: int = 0) -> str:
    process = started(root, *more)
    told = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == code, told[-3000:]
    return told


def only(root: Path, name: str) -> Path:
    (found,) = [path for path in root.iterdir() if name in path.name]
    return found


def rows(folder: Path, file: str) -> list[dict[str, Any]]:
    (found,) = folder.glob(f"evaluation/webq-*/{file}.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


@pytest.mark.parametrize(("engine", "peft"), [("zero2", "lora"), ("zero3", "p_tuning")])
def test_two_processes_do_what_one_does(tmp_path: Path, engine: str, peft: str) -> None:
    local, several = tmp_path / "local", tmp_path / "several"
    run(local, f"peft={peft}")
    told = run(several, f"peft={peft}", f"engine={engine}", *TWO)
    assert told.count("trainable parameters") == 1  # one process speaks
    one, two = only(local, "imsm"), only(several, "imsm")
    assert one.name == two.name
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        values, expected = load_file(two / "model" / file), load_file(one / "model" / file)
        for name, value in values.items():
            assert (value - expected[name]).abs().max() < 5e-3, name  # rounding, through Adam
    losses = [
        [json.loads(line).get("loss") for line in (place / "log.jsonl").read_text().splitlines()]
        for place in (one, two)
    ]
    assert losses[1][:-1] == pytest.approx(losses[0][:-1], abs=1e-4)
    # the original's answers are the same, each item once and in order
    originals = only(local, "original"), only(several, "original")
    assert rows(originals[0], "items") == rows(originals[1], "items")
    result = json.loads((two / "result.json").read_text())
    assert result["training"]["processes"] == 2
    assert result["training"]["engine"] == engine
    assert [row["id"] for row in rows(two, "items")] == [row["id"] for row in rows(one, "items")]


def test_ctrl_c_ends_all_after_a_checkpoint_and_one_process_goes_on(tmp_path: Path) -> None:
    process = started(tmp_path, "engine=zero2", *TWO, "trainer.num_epochs=40")
    end = time.monotonic() + LIMIT
    while not list(tmp_path.glob("*/log.jsonl")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)  # a checkpoint on demand
    while not list(tmp_path.glob("*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 130, told[-3000:]
    assert told.count("rerun the same command to resume") == 1
    assert "Traceback" not in told
    on_demand, place = sorted(only(tmp_path, "imsm").glob("checkpoints/step-*"))
    assert on_demand.name < place.name
    step = int(place.name.partition("-")[2])
    # another engine goes on with it, and SIGTERM ends it in the same way
    again = started(tmp_path, "engine=single", "trainer.num_epochs=40")
    while len((only(tmp_path, "imsm") / "log.jsonl").read_text().splitlines()) < step + 2:
        assert again.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    told = again.communicate(timeout=60)[0]
    assert again.returncode == 130, told[-3000:]
    assert f"resuming after step {step} of 240" in told


def test_bad_input_is_told_once(tmp_path: Path) -> None:
    told = run(tmp_path, "engine=zero2", *TWO, "resume=required", code=2)
    assert told.count("imsm: ") == 1 and "resume=required: there is no checkpoint" in told
    assert "Traceback" not in told
