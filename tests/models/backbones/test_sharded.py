"""A backbone that no process could hold is loaded, checked, trained and evaluated by two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed import TCPStore
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel

from imsm.models.adapters.base import attach_adapter
from imsm.models.backbones.loading import load_backbone
from imsm.models.backbones.sharded import load_sharded_backbone, local_part, sharded_layers
from imsm.utils.errors import UserError
from tests.helpers.word_run import run_words, write_word_files
from tests.models.siamese.tiny import ADAPTERS, ARCHITECTURES, prompts, tiny_backbone

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 8}
"""About 105 MB in float32, of which a layer has 4 MB."""
OVERRIDES = [
    "trainer.num_epochs=1", "trainer.learning_rate=0.003", "trainer.global_batch_size=3", "trainer.micro_batch_size=3",
    "evaluation.limit=5", "evaluation.batch_size=2",
]  # fmt: skip
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


def start(files: Path, runs: Path, *overrides: str) -> list[tuple[int, str]]:
    """Run in two limited processes; return the exit code and the output of each."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # glibc reserves 64 MB of addresses for every thread, and keeps freed blocks of less than 32 MB
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | malloc
    workers = []
    for rank in range(2):
        command = [sys.executable, "-m", "tests.models.backbones.sharded_worker", str(LIMIT), str(files), str(runs)]
        command += [str(rank), "2", str(store.port), *OVERRIDES, *overrides]
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


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone, which holds every shard."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def load(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    return load_sharded_backbone(name_or_path=str(folder), dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sharded_model_is_the_loaded_one(group: None, tmp_path: Path, architecture: str, dtype: str) -> None:
    tiny_backbone(architecture).save_pretrained(tmp_path, max_shard_size="40KB")
    GenerationConfig(eos_token_id=[2, 5]).save_pretrained(tmp_path)
    sharded, plain = load(tmp_path, dtype), load_backbone(name_or_path=str(tmp_path), dtype=dtype)
    assert len(sharded_layers(sharded)) == 3 and not any(p.requires_grad for p in sharded.parameters())
    assert sharded.generation_config.to_dict() == plain.generation_config.to_dict()
    assert sharded.config.to_dict() | {"_name_or_path": ""} == plain.config.to_dict() | {"_name_or_path": ""}
    found, expected = sharded.state_dict(), plain.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(local_part(value), expected[name]) and local_part(value).dtype == expected[name].dtype
    assert {name for name, value in found.items() if isinstance(value, DTensor)} == {
        name for name in found if ".layers." in name
    }
    ids = torch.tensor([prompts(batch=1)[0]])
    for mode in (True, False):  # training mode: no dropout
        with torch.no_grad():
            assert torch.equal(sharded.train(mode)(ids).logits, plain(ids).logits)


def test_files_that_do_not_fit_are_input_errors(group: None, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    first, *_ = sorted(set(names["weight_map"].values()))
    weights = load_file(tmp_path / first)
    name = next(iter(weights))
    save_file({"renamed" if each == name else each: value for each, value in weights.items()}, tmp_path / first)
    with pytest.raises(UserError, match=rf"its files have no {name} \(1 names\), .*set engine=zero3"):
        load(tmp_path)
    save_file({**weights, name: weights[name][:-1].contiguous()}, tmp_path / first)
    with pytest.raises(UserError, match=rf"{name} has the shape "):
        load(tmp_path)
    (tmp_path / first).unlink()
    with pytest.raises(UserError, match=f"has no {first}"):
        load(tmp_path)
    names["weight_map"][name] = f"../{tmp_path.name}/{first}"
    index.write_text(json.dumps(names))
    with pytest.raises(UserError, match=r"has no \.\./"):
        load(tmp_path)


def test_an_adapter_that_reads_complete_weights_is_an_input_error(group: None, tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path)
    model = load(tmp_path)
    with pytest.raises(UserError, match=r"engine=fsdp2: LoraConfig cannot be added to sharded layers.*zero2 or zero3"):
        attach_adapter(ADAPTERS["dora"](), model)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_it_as_one_would(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    one = run_words(files, tmp_path / "one", *OVERRIDES)
    results = start(files, tmp_path / "two", *SHARDED)
    assert all("complete: " in output and "allocate memory" in output for _, output in results), results[0][1][-2000:]
    assert [code for code, _ in results] == [0, 0], results[0][1][-3000:] + results[1][1][-3000:]
    two = tmp_path / "two" / one.name
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(two)) == 3
    for found, expected in zip(predictions(two), predictions(one), strict=True):
        assert found["response"] == expected["response"]
        assert found["reference_loglik"] == pytest.approx(expected["reference_loglik"], abs=1e-4)
    training = json.loads((two / "training.json").read_text())
    assert training["hidden_state_cache"] == "disk" and training["engine"] == "fsdp2"
    # the saved model is that of the other run up to rounding, through Adam
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        for name, value in load_file(two / "model" / file).items():
            torch.testing.assert_close(value, load_file(one / "model" / file)[name], atol=1e-3, rtol=1e-3)
    assert sum(file.stat().st_size for file in (two / "model").rglob("*")) < 20e6
    # one process loads it, and gives the same answers and log-likelihoods
    sharded = predictions(two)
    shutil.rmtree(two.parent / "response_cache")
    run_words(files, two.parent, *OVERRIDES, "mode=evaluate")
    for found, expected in zip(predictions(two), sharded, strict=True):
        assert found["response"] == expected["response"]
        assert found["reference_loglik"] == pytest.approx(expected["reference_loglik"], abs=1e-5)
