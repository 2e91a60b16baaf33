"""Run folders from elsewhere: opening one runs no code that it names, and writes nothing outside of it.

Each test changes a copy of a finished run as its sender could, hashes included, and then opens it in this process,
from the folder above it, which is importable.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imsm.cli.main import main
from imsm.evaluation.result import read_result, write_result
from imsm.utils import trust
from imsm.utils.files import file_lock
from imsm.utils.json_files import read_hashed_json, write_hashed_json
from imsm.utils.manifest import write_manifest
from imsm.utils.run_dir import MODEL_HASH, RunDir
from tests.helpers.word_run import run_words

pytestmark = pytest.mark.slow  # the run takes seconds

PAYLOAD = """
import pathlib, torch
pathlib.Path(__file__).with_name("ran").touch()
class X(torch.nn.Module):
    reads_query = False
    def __init__(self, **_): super().__init__()
def function(*_, **__): pathlib.Path(__file__).with_name("ran").touch()
INFO = score = examples = extract = function
"""
MODULES = (
    *("payload.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "json.py", "imsm/evil.py"),
    *("model/payload.py", "model/custom_generate/generate.py", "model/tokenization.py", "model/adapter/payload.py"),
)
NAMES = ("dl.payload.X", "payload.X", "dl.imsm.evil.X", "imsm.evil.X", "json.X", "conftest.X")


@pytest.fixture(scope="module")
def finished(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its original."""
    root = tmp_path_factory.mktemp("runs")
    run_words(word_files, root, "trainer.num_epochs=1")
    return root


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, `dl`, with modules that write a file `ran` when they are imported."""
    for source in finished.iterdir():
        name = "dl" if (source / "training.json").is_file() else source.name
        shutil.copytree(source, tmp_path / name)
    for name in MODULES:
        (tmp_path / "dl" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dl" / name).write_text(PAYLOAD)
    (tmp_path / "dl" / "evil.pth").write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import dl.payload\n"
    )
    change_model(tmp_path / "dl", "config.json", lambda values: None)
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.setattr(trust, "_trusted_folders", [])
    (tmp_path / "outside").mkdir()
    return tmp_path / "dl"


def ran(folder: Path) -> list[Path]:
    return list(folder.parent.rglob("ran"))


def change_model(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of the model, with the hashes that a sender can compute as well."""
    run = RunDir(folder)
    path = run.model / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    sha256 = write_manifest(run.model)
    write_hashed_json(run.trained, {**read_hashed_json(run.trained, fix=""), MODEL_HASH: sha256})


def change_result(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    result = json.loads((folder / "result.json").read_text())
    change(result)
    result.pop("sha256")
    write_result(folder, result)


def opened(command: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Run a command on the folder; return its exit code and its error."""
    arguments = {
        "generate": ["after red comes"],
        "predictions": ["--output", "table.csv"],
        "push": ["a/b", "--dry-run"],
        "export": ["--merged", "exported", "--stream", "tuned"],
        # ends before it listens
        "serve": ["dl", "--port", "0"],
    }
    code = main([command, "dl", *arguments.get(command, []), *more])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_class_is_not_imported(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change_model(folder, "config.json", lambda values: values["gate"].update(_target_=name))
    for command in ("generate", "export"):
        code, error = opened(command, capsys)
        assert code == 2 and "gate._target_" in error and "--config-dir" in error
    assert ran(folder) == []


@pytest.mark.parametrize("name", ["dl.payload", "payload", "imsm.evil", "dl.model.adapter.payload"])
def test_the_module_of_an_adapter_method_is_not_imported(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"python_module": name, "peft_type": "EVIL"}
    change_model(folder, "adapter/adapter_config.json", lambda saved: saved.update(values))
    code, error = opened("generate", capsys)
    assert code == 2 and "python_module" in error
    assert ran(folder) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("local_resolver", "dl.payload.function"),
        ("local_resolver", "imsm.models.backbones.gemma3_gguf._create"),
        ("local_resolver", "imsm.models.backbones.loading.cast"),
        ("attn_implementation", "someone/kernel"),
        ("attn_implementation", "paged|someone/kernel:function"),
        ("trust_remote_code", True),
    ],
)
def test_what_loads_the_backbone_is_part_of_imsm(
    folder: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change_model(folder, "config.json", lambda values: values["backbone"].update({key: value}))
    code, error = opened("generate", capsys)
    assert code == 2 and key in error
    assert ran(folder) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("adapter/adapter_config.json", {"auto_mapping": {"parent_library": "dl.payload", "base_model_class": "X"}}),
        ("adapter/adapter_config.json", {"runtime_config": {"ephemeral_gpu_offload": "dl.payload"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization.X", None]}, "tokenizer_class": "X"}),
        ("generation_config.json", {"custom_generate": "dl.payload", "trust_remote_code": True}),
        ("config.json", {"auto_map": {"AutoConfig": "payload.X"}, "attn_implementation": "someone/kernel"}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "payload.X"}, "trust_remote_code": True}),
    ],
)
def test_code_that_other_libraries_would_load_is_not_run(
    folder: Path, name: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    change_model(folder, name, lambda saved: saved.update(values))
    code, error = opened("generate", capsys)
    assert code in (0, 2) and error.count("imsm: ") == (code == 2)
    assert ran(folder) == []


@pytest.mark.parametrize("command", ["report", "predictions", "baselines", "push", "generate", "export", "serve"])
@pytest.mark.parametrize("name", ["dl.payload", "payload", "imsm.evil"])
def test_modules_of_a_result_are_not_imported(
    folder: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(result: dict[str, Any]) -> None:
        config = result["config"]
        config["config_dir"] = str(folder)
        config["metrics"] = dict.fromkeys(config["metrics"], name)
        config["data"]["module"] = name
        for task in config["tasks"].values():
            task["module"] = name
        config["gate"]["_target_"] = config["peft"]["_target_"] = f"{name}.X"
        config["backbone"]["local_resolver"] = f"{name}.function"

    change_result(folder, change)
    code, error = opened(command, capsys)
    assert code == 2 if command in ("baselines", "serve") else code in (0, 2)
    assert "--config-dir" in error if command in ("baselines", "report") else code == 0 or "--config-dir" in error
    assert ran(folder) == []


def test_a_folder_given_on_the_command_line_is_trusted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "conf").mkdir()
    (folder.parent / "conf" / "my_gate.py").write_text("from imsm.models.siamese.gate import Gate as MyGate\n")
    change_model(folder, "config.json", lambda values: values["gate"].update(_target_="my_gate.MyGate"))
    assert opened("generate", capsys)[0] == 2
    assert opened("generate", capsys, "--config-dir", "conf")[0] == 0
    assert ran(folder) == []


HOSTILE = ["..", "../outside/x", "/outside", "a/b", "a\0b", "a\nb", "x" * 300, ".hidden", "", "ä", "a b", "\x1b[2J"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_result_is_no_path(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(result: dict[str, Any]) -> None:
        for tasks in (result["evaluation"]["tasks"], result["config"]["tasks"]):
            task = next(iter(tasks))
            tasks[name] = tasks.pop(task)
        result["config"]["tasks"][name]["name"] = result["config"]["data"]["name"] = name

    change_result(folder, rename)
    before = sorted(folder.parent.rglob("*"))
    for command in ("report", "predictions", "baselines"):
        code, error = opened(command, capsys)
        assert code == 2 and len(error.splitlines()) == 1 and "\x1b" not in error
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("section", ["backbone", "peft", "gate", "method", "trainer", "data"])
def test_a_name_of_an_option_in_a_result_is_no_path(
    folder: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_result(folder, lambda result: result["config"][section].update(name="../../outside/x"))
    assert opened("baselines", capsys)[0] == 2
    assert list((folder.parent / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["evaluation", "figures", "baselines", "lock", "report.html", "baselines/lock"])
@pytest.mark.parametrize("command", ["report", "baselines"])
def test_nothing_is_written_through_a_link(
    folder: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = folder.parent / "outside"
    target = outside / "file" if "." in name or "lock" in name else outside
    if target != outside:
        target.write_text("precious")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    code, error = opened(command, capsys)
    assert code == 2 and "symbolic link" in error
    assert [each.read_text() for each in outside.iterdir()] == ["precious"] * (target != outside)


def test_a_fifo_does_not_block(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "lock2")
    assert opened("baselines", capsys)[0] == 2
    os.mkfifo(folder.parent / "lock")
    with file_lock(folder.parent):  # returns
        pass


def test_the_unchanged_copy_is_readable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_result(folder)["method"] == "imsm"
    for command in ("report", "predictions", "baselines", "push", "generate", "export"):
        assert opened(command, capsys)[0] == 0
    assert ran(folder) == []
