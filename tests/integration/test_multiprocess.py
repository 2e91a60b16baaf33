"""A run by its command, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from imsm.pipeline.run import run_experiment
from tests.helpers.cli import imsm_run
from tests.helpers.config import config

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow
OVERRIDES = [
    "data.max_train_examples=96", "trainer.num_epochs=1",
    "evaluation.limit=12", "evaluation.tasks=[target,webq]", "evaluation.batch_size=4",
]  # fmt: skip
TWO_PROCESSES = ["engine.nproc_per_node=2", "engine.device=cpu"]
TIMEOUT = 240


def with_shared(overrides: Sequence[str]) -> list[str]:
    given = {text.partition("=")[0] for text in overrides}
    return [*(text for text in OVERRIDES if text.partition("=")[0] not in given), *overrides]


def start(root: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = os.environ | {"IMSM_RUNS": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "imsm.run", *with_shared(overrides)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command, whose worker processes are started by this one; return its exit code and all output."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_command(root: Path, *overrides: str) -> tuple[int, str]:
        monkeypatch.setenv("IMSM_RUNS", str(root))
        capfd.readouterr()
        code = imsm_run(monkeypatch, *with_shared(overrides))
        return code, "".join(capfd.readouterr())

    return run_command


def only(root: Path, name: str) -> Path:
    (found,) = [path for path in root.iterdir() if name in path.name]
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)


def predictions(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("evaluation/webq-*/predictions.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(("engine", "peft"), [("zero2", "lora"), ("zero3", "p_tuning"), ("fsdp2", "lora")])
def test_two_processes_give_the_result_of_one(
    tmp_path: Path, run: Callable[..., tuple[int, str]], engine: str, peft: str
) -> None:
    single, double = tmp_path / "single", tmp_path / "double"
    run_experiment(config(*OVERRIDES, f"peft={peft}"), runs_root=single)
    code, output = run(double, f"peft={peft}", f"engine={engine}", *TWO_PROCESSES)
    assert code == 0, output[-3000:]
    assert output.count("trainable parameters") == 1  # only rank 0 prints
    one, two = only(single, "imsm"), only(double, "imsm")
    assert one.name == two.name
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        values, expected = load_file(two / "model" / file), load_file(one / "model" / file)
        for name, value in values.items():
            assert (value - expected[name]).abs().max() < 5e-3, name  # rounding, through Adam
    losses = [
        [json.loads(line).get("loss") for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert losses[1][:-1] == pytest.approx(losses[0][:-1], abs=1e-4)
    # the original's predictions are the same, each example once and in order
    assert predictions(only(single, "original")) == predictions(only(double, "original"))
    result = json.loads((two / "result.json").read_text())
    assert result["training"]["processes"] == 2
    assert result["training"]["engine"] == engine
    assert [row["id"] for row in predictions(two)] == [row["id"] for row in predictions(one)]


def test_an_interrupt_saves_a_checkpoint_that_one_process_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, "engine=zero2", *TWO_PROCESSES, "trainer.num_epochs=40")
    wait_until(lambda: any(tmp_path.glob("*/log.jsonl")), process)
    process.send_signal(signal.SIGUSR1)  # requests a checkpoint
    wait_until(lambda: any(tmp_path.glob("*/checkpoints/step-*")), process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output[-3000:]
    assert output.count("finished steps are kept in") == 1
    assert output.count("run the same command again to resume") == 1
    assert "Traceback" not in output
    requested, newest = sorted(only(tmp_path, "imsm").glob("checkpoints/step-*"))
    assert requested.name < newest.name
    step = int(newest.name.partition("-")[2])
    # another engine resumes from it, and SIGTERM interrupts it in the same way
    resumed = start(tmp_path, "engine=single", "trainer.num_epochs=40")
    log = only(tmp_path, "imsm") / "log.jsonl"
    wait_until(lambda: len(log.read_text().splitlines()) >= step + 2, resumed)
    resumed.send_signal(signal.SIGTERM)
    output = resumed.communicate(timeout=60)[0]
    assert resumed.returncode == 143, output[-3000:]
    assert f"resuming after step {step} of 240" in output


def test_an_input_error_is_reported_once(tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    code, output = run(tmp_path, "engine=zero2", *TWO_PROCESSES, "resume=required")
    assert code == 2, output[-3000:]
    assert output.count("imsm: ") == 1 and "resume=required: found no checkpoint" in output
    assert "Traceback" not in output
