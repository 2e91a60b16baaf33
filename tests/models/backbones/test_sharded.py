"""A backbone that no process could hold is loaded, checked, trained and evaluated by two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.word_run import run_words, write_word_files

pytestmark = pytest.mark.slow
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 8}
"""About 105 MB in float32, of which a layer has 4 MB."""
OVERRIDES = ["trainer.num_epochs=2", "trainer.learning_rate=0.01", "evaluation.batch_size=3"]
SHARDED = ["engine=fsdp2", "engine.device=cpu"]
LIMIT = 95 * 2**20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_word_files(tmp_path_factory.mktemp("large"), max_shard_size="9MB", **SHAPE)
    (folder / "small").mkdir()
    write_word_files(folder / "small")
    assert len(list((folder / "backbone").glob("*.safetensors"))) > 8
    assert sum(file.stat().st_size for file in (folder / "backbone").glob("*.safetensors")) > LIMIT
    return folder


def start(files: Path, runs: Path, *overrides: str, processes: int) -> list[tuple[int, str]]:
    """Run in limited processes; return the exit code and the output of each."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # glibc reserves 64 MB of addresses for every thread, and keeps freed blocks of less than 32 MB
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | malloc
    workers = []
    for rank in range(processes):
        command = [sys.executable, "-m", "tests.models.backbones.sharded_worker", str(LIMIT), str(files), str(runs)]
        command += [str(rank), str(processes), str(store.port), *OVERRIDES, *overrides]
        output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **output))
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    return [(worker.returncode, output) for worker, output in zip(workers, outputs, strict=True)]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def predictions(run: Path) -> list[dict[str, Any]]:
    (file,) = run.glob("evaluation/*/predictions.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_process_cannot_load_it(files: Path, tmp_path: Path) -> None:
    ((code, output),) = start(files, tmp_path, "engine=single", "engine.device=cpu", processes=1)
    assert code != 0
    assert "allocate memory" in output or "MemoryError" in output, output[-2000:]


def test_two_processes_train_and_evaluate_it_as_one_would(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    one = run_words(files, tmp_path / "one", *OVERRIDES)
    results = start(files, tmp_path / "two", *SHARDED, processes=2)
    assert [code for code, _ in results] == [0, 0], results[0][1][-3000:] + results[1][1][-3000:]
    two = tmp_path / "two" / one.name
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(two)) == 4
    for found, expected in zip(predictions(two), predictions(one), strict=True):
        assert found["response"] == expected["response"]
        assert found["reference_loglik"] == pytest.approx(expected["reference_loglik"], abs=1e-4)
    training = json.loads((two / "training.json").read_text())
    assert training["hidden_state_cache"] == "disk" and training["engine"] == "fsdp2"
    # the saved model is that of the other run, and loads in one process
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        for name, value in load_file(two / "model" / file).items():
            torch.testing.assert_close(value, load_file(one / "model" / file)[name], atol=1e-4, rtol=1e-3)
    assert sum(file.stat().st_size for file in (two / "model").rglob("*")) < 20e6
    ids, labels = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[-100, -100, 6, 7]])
    both = [SiameseForCausalLM.from_pretrained(run)(ids, labels=labels).loss for run in (one, two)]
    assert both[1].item() == pytest.approx(both[0].item(), abs=1e-5)
