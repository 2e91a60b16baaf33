"""ZeRO and FSDP2 over two CPU processes give the losses and parameters of one process.

One launch trains all stages and methods; the tests read its results.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests.training.engines.deepspeed_worker import (
    BATCH_PLAN,
    CASES,
    EXAMPLES,
    FSDP2,
    RESUMED,
    STAGES,
    STOP,
    Case,
    Stage,
    build,
    build_in_one_process,
    cases_of,
    run,
    single_device_engine,
)

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow
STAGE_CASES = [pytest.param(stage, case, id=f"{stage}-{case}") for stage in STAGES for case in cases_of(stage)]


@dataclass(frozen=True)
class Results:
    """What the two processes wrote."""

    folder: Path

    def metrics(self, stage: Stage, case: Case, name: str) -> list[dict[str, float]]:
        return json.loads((self.folder / str(stage) / f"{case}-{name}.json").read_text())

    def values(self, stage: Stage, case: Case, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / str(stage) / f"{case}-{name}.safetensors")


@pytest.fixture(scope="module")
def single_device(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    """The trainings of one process."""
    results = {}
    for case in CASES:
        parts = build_in_one_process(case)
        results[case] = run(parts, single_device_engine(parts), tmp_path_factory.mktemp("single"))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    folder = tmp_path_factory.mktemp("zero")
    for case in RESUMED:  # a checkpoint of one process, from which ZeRO resumes
        parts = build(case)
        checkpoints = tmp_path_factory.mktemp("single")
        run(parts, single_device_engine(parts), checkpoints, stop_after=STOP)
        for stage in STAGES:
            shutil.copytree(checkpoints, folder / str(stage) / str(case) / "from-single-device")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.training.engines.deepspeed_worker"),
                *(str(rank), "2", str(store.port), str(folder)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [worker.communicate(timeout=900)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(output)[-4000:]
    yield Results(folder)


def losses(metrics: list[dict[str, float]]) -> list[float]:
    return [step["loss"] + step.get("auxiliary_loss", 0.0) for step in metrics]


def is_close(found: list[float], expected: list[float], tolerance: float) -> bool:
    return len(found) == len(expected) and all(
        abs(a - b) <= tolerance * max(1, abs(b)) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("stage", "case"), STAGE_CASES)
def test_losses_equal_those_of_one_process(results: Results, single_device: dict, stage: Stage, case: Case) -> None:
    expected = losses(single_device[case]["metrics"])
    assert max(expected) - min(expected) > 0.1  # the model learns
    found = losses(results.metrics(stage, case, "full"))
    assert is_close(found, expected, 3e-3 if case.dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("key", ["gradient_norm", "gate_mean", "validation_loss"])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_metrics_equal_those_of_one_process(results: Results, single_device: dict, stage: Stage, key: str) -> None:
    for case in RESUMED:
        found = [step[key] for step in results.metrics(stage, case, "full") if key in step]
        expected = [step[key] for step in single_device[case]["metrics"] if key in step]
        assert expected and is_close(found, expected, 1e-4)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.offload], ids=str)
def test_the_kl_divergence_equals_that_of_one_process(results: Results, single_device: dict, stage: Stage) -> None:
    case = Case("lora", interwoven=False, kl=0.5)
    found = [step["kl_to_original"] for step in results.metrics(stage, case, "full")]
    expected = [step["kl_to_original"] for step in single_device[case]["metrics"]]
    assert max(expected) > 0.01 and is_close(found, expected, 1e-4)


@pytest.mark.parametrize("stage", [Stage(2), Stage(3), FSDP2], ids=str)
def test_the_loss_of_rehearsal_equals_that_of_one_process(results: Results, single_device: dict, stage: Stage) -> None:
    case = Case("lora", interwoven=False, rehearsal=True)
    found = [step["rehearsal_loss"] for step in results.metrics(stage, case, "full")]
    expected = [step["rehearsal_loss"] for step in single_device[case]["metrics"]]
    assert max(expected) > 0.01 and is_close(found, expected, 1e-4)


@pytest.mark.parametrize(("stage", "case"), STAGE_CASES)
def test_parameters_equal_those_of_one_process(
    results: Results, single_device: dict, stage: Stage, case: Case
) -> None:
    found, expected = results.values(stage, case, "full"), single_device[case]["values"]
    assert found.keys() == expected.keys()
    for name, value in found.items():  # Adam amplifies a small difference in a small gradient
        atol = 3e-2 if case.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(value, expected[name], atol=atol, rtol=1e-3)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_adalora_prunes_the_same_ranks(results: Results, single_device: dict, stage: Stage) -> None:
    case = Case("adalora")
    found, expected = results.values(stage, case, "full"), single_device[case]["values"]
    diagonals = [name for name in found if "lora_E" in name]
    pruned = sum(int((found[name] == 0).sum()) for name in diagonals)
    assert pruned == len(diagonals) * 3  # half of six on average
    for name in diagonals:
        assert torch.equal(found[name] == 0, expected[name] == 0)


@pytest.mark.parametrize("case", RESUMED, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_resumed_run_is_bit_equal(results: Results, stage: Stage, case: Case) -> None:
    full, resumed = results.values(stage, case, "full"), results.values(stage, case, "resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in full.items())
    assert losses(results.metrics(stage, case, "resumed")) == losses(results.metrics(stage, case, "full"))[STOP:]


@pytest.mark.parametrize("case", RESUMED, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_run_resumes_from_the_other_engines_checkpoint(
    results: Results, single_device: dict, stage: Stage, case: Case
) -> None:
    expected = single_device[case]["metrics"][-1]["loss"]
    from_single_device = results.metrics(stage, case, "from-single-device")[-1]["loss"]
    assert abs(from_single_device - expected) < 1e-4
    parts = build(case)
    folder = results.folder / str(stage) / str(case) / "for-single-device"
    metrics = run(parts, single_device_engine(parts), folder)["metrics"]
    assert len(metrics) == BATCH_PLAN.num_steps(len(EXAMPLES)) - STOP == 2
    assert abs(metrics[-1]["loss"] - expected) < 1e-4
