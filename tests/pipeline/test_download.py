"""`mode=download`: what is fetched, and that the run then needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants

from imsm.config.identity import run_identity
from imsm.config.schema import FrozenAdapterConfig
from imsm.data.sources import MINIATURE, DataSource, load_examples
from imsm.models.backbones.download import fetch_backbone, missing_files, parts_of_index, weight_files
from imsm.pipeline import download as preparing
from imsm.pipeline.download import check_here, prepare
from imsm.utils.errors import UserError
from tests.data.shipped import shipped_task
from tests.helpers.config import config
from tests.helpers.fake_hub import Hub, hub
from tests.helpers.paths import ROOT
from tests.helpers.tiny_backbone import save_backbone

TASKS = ("gsm8k", "webq")
BLOCKED = """
import socket

def refuse(*arguments, **_):
    raise OSError(f"this test has no network: {arguments}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(autouse=True)
def _nothing_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_prepared", {})


def prepare_one(*overrides: str) -> None:
    prepare(config("mode=download", *overrides), program="run.py", arguments=["mode=download"])


def test_the_miniature_needs_nothing_and_is_looked_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    overrides = ["data.max_train_examples=32", "evaluation.limit=4", "evaluation.tasks=[target,webq]"]
    given = [*overrides, "mode=download", "data.prompt_style=paper", "'data.mirror_dir=\"a b\"'"]
    prepare(config("mode=download", *overrides), program="/x/imsm/cli/run.py", arguments=given)
    told = capsys.readouterr().out
    for part in ("imsm:miniature: ", " MB in ", "(train)        32 examples, ", "webq (test)"):
        assert part in told
    last = told.splitlines()[-1].strip()
    assert last.startswith("HF_HUB_OFFLINE=1 python -m imsm.run data.max_train_examples=32 ")
    assert "mode" not in last and "'data.prompt_style" not in last and '"a b"' in last
    assert not (tmp_path / "runs").exists()


def test_a_sweep_prepares_each_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("data.max_train_examples=32", "evaluation.limit=4", "evaluation.tasks=[target,webq]")
    for more in (("gate.rank=4",), ("gate.rank=8",), ("method=original",), ("data=mrpc",)):
        prepare_one(*few, *more)
    lines = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    assert lines.count("backbone") == lines.count("webq (test)") == 1
    assert lines.count("gsm8k (train)") == lines.count("mrpc (train)") == 1
    assert sum(line.startswith("HF_HUB_OFFLINE=1") for line in lines) == 1


def test_replay_is_prepared_too(capsys: pytest.CaptureFixture[str]) -> None:
    prepare_one("peft=loramoe_blc_replay", "data.max_train_examples=40", "evaluation.limit=4")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "(train)" in line)
    assert int(line.split()[2]) > 40


def test_what_does_not_fit_is_said_before_the_run() -> None:
    with pytest.raises(UserError, match="No training example is left"):
        prepare_one("data.max_prompt_tokens=2")


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors.index.json", "pytorch_model.bin"], "model.safetensors.index.json"),
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
    ],
)
def test_one_form_of_the_weights(names: list[str], first: str) -> None:
    assert weight_files(names, source="a/b")[1] == first


def test_a_repository_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"a/b: .* none of model\.safetensors"):
        weight_files(["consolidated.00.pth", "model.gguf"], source="a/b")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one model in two parts; returns the model's folder in it."""
    place = tmp_path / "hub" / "models--some--llama"
    folder = place / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name in ("config.json", "tokenizer.json", *parts.values()):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return folder


def test_what_is_missing_is_one_line(cached: Path) -> None:
    assert missing_files("some/llama", revision=None) is None
    assert len(parts_of_index(cached / "model.safetensors.index.json")) == 2
    told = {missing_files("some/other", revision=None), missing_files("some/llama", revision="v1")}
    (cached / "model-00002-of-00002.safetensors").unlink()
    told.add(line := missing_files("some/llama", revision=None))
    assert line is not None and "model-00002-of-00002.safetensors (1 files)" in line
    (cached / "model.safetensors.index.json").unlink()
    told.add(missing_files("some/llama", revision=None))
    assert len(told) == 4
    for each in told:
        assert each is not None and "mode=download" in each and "\n" not in each


def test_without_a_network_a_run_looks_first(cached: Path, tmp_path: Path) -> None:
    chosen = ["backbone=llama3", "backbone.name_or_path=some/llama", "evaluation.tasks=[target,webq]"]
    assert huggingface_hub.is_offline_mode()
    with pytest.raises(UserError, match=r"^dataset openai/gsm8k \(main\): .*mode=download.*$"):
        check_here(config(*chosen))
    (tmp_path / "datasets" / "openai___gsm8k" / "main").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^dataset stanfordnlp/web_questions: .*mode=download.*$"):
        check_here(config(*chosen))
    (tmp_path / "datasets" / "stanfordnlp___web_questions").mkdir()
    check_here(config(*chosen))
    before = run_identity(config(*chosen, "data=cola"))  # what an adapter learned is read too
    frozen = {"frozen_run": FrozenAdapterConfig(tasks=["cola"], identity=before)}
    with pytest.raises(UserError, match=r"^dataset nyu-mll/glue \(cola\): .*mode=download.*$"):
        check_here(config(*chosen).model_copy(update=frozen))
    with pytest.raises(UserError, match=r"^backbone meta-llama/Meta-Llama-3-8B: it is not in"):
        check_here(config("backbone=llama3"))
    with pytest.raises(UserError, match=r"^backbone a/b: it is not in .*mode=download"):
        fetch_backbone(name_or_path="a/b", revision=None, local_resolver=None)
    check_here(config())  # the miniature is always here


def command(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command with a home of its own; `SITE` is run before it."""
    environment = {
        **os.environ,
        "HF_HOME": str(home / "hf"),
        "IMSM_CACHE": str(home / "cache"),
        "IMSM_RUNS": str(home / "runs"),
        "PYTHONPATH": os.pathsep.join([str(home / "site"), str(ROOT)]),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
    site = home / "site" / "sitecustomize.py"
    site.parent.mkdir(exist_ok=True)
    site.write_text(environment.pop("SITE", ""))
    line = [sys.executable, "-m", "imsm.run", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=home, env=environment)


@pytest.fixture
def served(tmp_path: Path) -> Hub:
    """A model in several parts, with what nobody should fetch beside it, and datasets."""
    datasets, texts = {}, []
    for name in TASKS:
        task = shipped_task(name)
        assert task.hub is not None
        datasets[task.hub.path] = MINIATURE / task.hub.path
        for role in ("train", "test"):
            source = DataSource(kind="miniature")
            found = load_examples(task, role, source=source, prompts="paper", limit=None)
            texts += [example.prompt + example.golds[0] for example in found]
    model = save_backbone(tmp_path / "model", texts=texts)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="20KB")
    (model / "original").mkdir()
    for unwanted in ("pytorch_model.bin", "original/consolidated.00.pth", "model.onnx", "code.py"):
        (model / unwanted).write_bytes(b"nobody reads this")
    return Hub(models={"some/llama": model}, datasets=datasets)


@pytest.mark.slow
def test_prepared_with_a_network_and_run_without(served: Hub, tmp_path: Path) -> None:
    chosen = [
        "backbone=llama3", "backbone.name_or_path=some/llama", "backbone.dtype=float32", "trainer=mini",
        "evaluation.tasks=[target,webq]", "evaluation.limit=2", "data.max_train_examples=32",
        "data.max_new_tokens=120", "engine=single",
    ]  # fmt: skip
    with hub(models=served.models, datasets=served.datasets) as there:
        done = command(tmp_path, *chosen, "mode=download", HF_ENDPOINT=there.url)
    assert done.returncode == 0, done.stderr
    assert "some/llama" in done.stdout and "gsm8k (train)        32 examples" in done.stdout
    assert "openai/gsm8k: " in done.stdout
    (parts, wanted) = [{name for name in there.fetched if name.startswith("model/") == mine} for mine in (True, False)]
    assert len([name for name in parts if name.endswith(".safetensors")]) >= 2
    assert "model/tokenizer.json" in parts
    assert not [name for name in parts if name.endswith((".bin", ".pth", ".onnx", ".py"))]
    assert any("gsm8k" in name for name in wanted)
    assert not (tmp_path / "runs").exists()

    alone = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": there.url, "SITE": BLOCKED}
    run = command(tmp_path, *chosen, **alone)
    assert run.returncode == 0, run.stderr
    assert "datasets" not in run.stderr and "latest cached" not in run.stderr
    again = command(tmp_path, *chosen, "mode=download", **alone)
    assert (again.returncode, "32 examples" in again.stdout) == (0, True), again.stderr
    weights = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*/model-00002-*"))
    weights.unlink()
    missing = command(tmp_path, *chosen, "seed=2", **alone)
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert weights.name in line and "mode=download" in line


@pytest.mark.slow
def test_a_prepared_miniature_run_opens_no_connection(tmp_path: Path) -> None:
    chosen = ["data.max_train_examples=32", "evaluation.limit=2", "evaluation.tasks=[target]"]
    for mode in ("download", "run"):
        done = command(tmp_path, *chosen, "engine=single", f"mode={mode}", SITE=BLOCKED)
        assert done.returncode == 0, done.stderr
        assert "no network" not in done.stderr


def test_no_network_at_all_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", _Unreachable)
    with pytest.raises(UserError, match=r"^backbone a/b: cannot be loaded \(no route to host\)"):
        fetch_backbone(name_or_path="a/b", revision=None, local_resolver=None)


class _Unreachable:
    def model_info(self, *_: object, **__: object) -> None:
        raise ConnectionError("no route to host")
