"""`mode=download`: what is downloaded, and that the run then needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants

from imsm.config.identity import run_identity
from imsm.config.schema import FrozenAdapterConfig
from imsm.data.example import Example
from imsm.data.sources import MINIATURE, DataSource, load_examples
from imsm.data.task import Role, Task
from imsm.evaluation import eval_set
from imsm.models.backbones.download import fetch_backbone, missing_files, parts_of_index
from imsm.pipeline import data as pipeline_data
from imsm.pipeline import download as pipeline_download
from imsm.pipeline import rehearsal, watch
from imsm.pipeline.download import check_offline_files, download
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
def _nothing_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_download, "_done", {})


def download_for(*overrides: str) -> None:
    download(config("mode=download", *overrides), ["mode=download"])


def test_the_miniature_needs_no_download_and_is_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    overrides = ["data.max_train_examples=32", "evaluation.limit=4", "evaluation.tasks=[target,webq]"]
    given = [*overrides, "mode=download", "data.prompt_style=paper", "'data.mirror_dir=\"a b\"'"]
    download(config("mode=download", *overrides), given)
    output = capsys.readouterr().out
    for part in ("imsm:miniature: ", " MB in ", "(train)        32 examples, ", "webq (test)"):
        assert part in output
    last = output.splitlines()[-1].strip()
    assert last.startswith("HF_HUB_OFFLINE=1 imsm run data.max_train_examples=32 ")
    assert "mode" not in last and "'data.prompt_style" not in last and '"a b"' in last
    assert not (tmp_path / "runs").exists()


def test_a_sweep_downloads_each_item_once(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("data.max_train_examples=32", "evaluation.limit=4", "evaluation.tasks=[target,webq]")
    for more in (("gate.rank=4",), ("gate.rank=8",), ("method=original",), ("data=mrpc",)):
        download_for(*few, *more)
    lines = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    assert lines.count("backbone") == lines.count("webq (test)") == 1
    assert lines.count("gsm8k (train)") == lines.count("mrpc (train)") == 1
    assert sum(line.startswith("HF_HUB_OFFLINE=1") for line in lines) == 1


def test_replay_is_downloaded_too(capsys: pytest.CaptureFixture[str]) -> None:
    download_for("peft=loramoe_blc_replay", "data.max_train_examples=40", "evaluation.limit=4")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "(train)" in line)
    assert int(line.split()[2]) > 40


def test_the_data_of_rehearsal_and_of_watched_items_is_downloaded_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[tuple[str, str]] = set()
    for module in (pipeline_data, rehearsal, watch, eval_set):

        def recording(task: Task, role: Role, *, load: Any = module.load_examples, **options: Any) -> list[Example]:
            read.add((task.name, role))
            examples: list[Example] = load(task, role, **options)
            return examples

        monkeypatch.setattr(module, "load_examples", recording)
    few = ("method=peft", "data.max_train_examples=40", "evaluation.limit=4", "evaluation.tasks=[target,webq]")
    other = {("freebaseqa", "test"), ("multirc", "test"), ("mrpc", "test")}
    for more, wanted, line in (
        (["rehearsal=replay"], {("webq", "train"), *other}, "rehearsal (replay)   4 examples, "),
        (["rehearsal=self"], other, "rehearsal (prompts)  1 examples, 1 tokens"),
        (["rehearsal=self", "rehearsal.prompts=webq"], {("webq", "train"), *other}, "rehearsal (prompts)  "),
        (["trainer.watch_items=3"], {("webq", "train")}, "watched items        webq 3 (train)"),
    ):
        read.clear()
        download_for(*few, *more)
        assert wanted <= read and line in capsys.readouterr().out


def test_invalid_data_is_reported_before_the_run() -> None:
    with pytest.raises(UserError, match="no training example is left"):
        download_for("data.max_prompt_tokens=2")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with one model in two shards; return the model's folder in it."""
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


def test_missing_files_are_reported_in_one_line(cached: Path) -> None:
    assert missing_files("some/llama", revision=None) is None
    assert len(parts_of_index(cached / "model.safetensors.index.json")) == 2
    messages = {missing_files("some/other", revision=None), missing_files("some/llama", revision="v1")}
    (cached / "model-00002-of-00002.safetensors").unlink()
    messages.add(line := missing_files("some/llama", revision=None))
    assert line is not None and "model-00002-of-00002.safetensors (1 files)" in line
    (cached / "model.safetensors.index.json").unlink()
    messages.add(missing_files("some/llama", revision=None))
    assert len(messages) == 4
    for each in messages:
        assert each is not None and "mode=download" in each and "\n" not in each


def test_offline_a_run_checks_its_files_first(cached: Path, tmp_path: Path) -> None:
    overrides = ["backbone=llama3", "backbone.name_or_path=some/llama", "evaluation.tasks=[target,webq]"]
    assert huggingface_hub.is_offline_mode()
    with pytest.raises(UserError, match=r"^dataset openai/gsm8k \(main\): .*mode=download.*$"):
        check_offline_files(config(*overrides))
    (tmp_path / "datasets" / "openai___gsm8k" / "main").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^dataset stanfordnlp/web_questions: .*mode=download.*$"):
        check_offline_files(config(*overrides))
    (tmp_path / "datasets" / "stanfordnlp___web_questions").mkdir()
    check_offline_files(config(*overrides))
    parent = run_identity(config(*overrides, "data=cola"))  # training data of a parent run is read too
    frozen = {"frozen_run": FrozenAdapterConfig(tasks=["cola"], identity=parent)}
    with pytest.raises(UserError, match=r"^dataset nyu-mll/glue \(cola\): .*mode=download.*$"):
        check_offline_files(config(*overrides).model_copy(update=frozen))
    with pytest.raises(UserError, match=r"^backbone meta-llama/Meta-Llama-3-8B: it is not in"):
        check_offline_files(config("backbone=llama3"))
    with pytest.raises(UserError, match=r"^backbone a/b: it is not in .*mode=download"):
        fetch_backbone(name_or_path="a/b", revision=None, local_resolver=None)
    check_offline_files(config())  # the miniature is always available


# executes command lines in one process; removes a file between two of them
PROGRAM = """
import contextlib, io, json, os, sys
from imsm.cli.main import main

results = []
for line in json.loads(sys.argv[1]):
    if isinstance(line, str):
        os.remove(line)
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["run", *line])
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str
    logs: str  # of libraries, which keep the process's own stream; those of all its commands


def commands(home: Path, *lines: Sequence[str] | Path, **more: str) -> list[Result]:
    """Execute commands in one process with a temporary home; `SITE` is code executed before them.

    A path among the commands is removed when its turn comes.
    """
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
    program = [sys.executable, "-c", PROGRAM, json.dumps(lines, default=str)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=home, env=environment)
    assert done.returncode == 0, done.stderr
    return [Result(*result, done.stderr) for result in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def served(tmp_path: Path) -> Hub:
    """A sharded model with files that must not be downloaded, and datasets."""
    datasets, texts = {}, []
    for name in TASKS:
        task = shipped_task(name)
        assert task.hub is not None
        datasets[task.hub.path] = MINIATURE / task.hub.path
        for role in ("train", "test"):
            source = DataSource(kind="miniature")
            found = load_examples(task, role, source=source, prompt_style="paper", limit=None)
            texts += [example.prompt + example.golds[0] for example in found]
    model = save_backbone(tmp_path / "model", texts=texts)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="20KB")
    (model / "original").mkdir()
    for unwanted in ("pytorch_model.bin", "original/consolidated.00.pth", "model.onnx", "code.py"):
        (model / unwanted).write_bytes(b"unused")
    return Hub(models={"some/llama": model}, datasets=datasets)


@pytest.mark.slow
def test_a_run_downloaded_with_a_network_works_without(served: Hub, tmp_path: Path) -> None:
    overrides = [
        "backbone=llama3", "backbone.name_or_path=some/llama", "backbone.dtype=float32", "trainer=mini",
        "evaluation.tasks=[target,webq]", "evaluation.limit=2", "data.max_train_examples=32",
        "data.max_new_tokens=120", "engine=single",
    ]  # fmt: skip
    with hub(models=served.models, datasets=served.datasets) as there:
        (done,) = commands(tmp_path, [*overrides, "mode=download"], HF_ENDPOINT=there.url)
    assert done.code == 0, done.stderr
    assert "some/llama" in done.stdout and "gsm8k (train)        32 examples" in done.stdout
    assert "openai/gsm8k: " in done.stdout
    (parts, wanted) = [{name for name in there.fetched if name.startswith("model/") == mine} for mine in (True, False)]
    assert len([name for name in parts if name.endswith(".safetensors")]) >= 2
    assert "model/tokenizer.json" in parts
    assert not [name for name in parts if name.endswith((".bin", ".pth", ".onnx", ".py"))]
    assert any("gsm8k" in name for name in wanted)
    assert not (tmp_path / "runs").exists()

    alone = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": there.url, "SITE": BLOCKED}
    weights = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*/model-00002-*"))
    lines = [overrides, [*overrides, "mode=download"], weights, [*overrides, "seed=2"]]
    run, again, missing = commands(tmp_path, *lines, **alone)
    assert run.code == 0, run.stderr
    for text in (run.stderr, run.logs):
        assert "datasets" not in text and "latest cached" not in text
    assert (again.code, "32 examples" in again.stdout) == (0, True), again.stderr
    assert missing.code == 2
    (line,) = missing.stderr.splitlines()
    assert weights.name in line and "mode=download" in line


@pytest.mark.slow
def test_a_miniature_run_opens_no_connection(tmp_path: Path) -> None:
    overrides = ["data.max_train_examples=32", "evaluation.limit=2", "evaluation.tasks=[target]"]
    lines = [[*overrides, "engine=single", f"mode={mode}"] for mode in ("download", "run")]
    for done in commands(tmp_path, *lines, SITE=BLOCKED):
        assert done.code == 0, done.stderr
        assert "no network" not in done.stderr + done.logs


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("imsm.models.backbones.download.HfApi", _Unreachable)
    with pytest.raises(UserError, match=r"^backbone a/b: cannot be loaded \(no route to host\)"):
        fetch_backbone(name_or_path="a/b", revision=None, local_resolver=None)


class _Unreachable:
    def model_info(self, *_: object, **__: object) -> None:
        raise ConnectionError("no route to host")
