"""`imsm push`: the uploaded files, without paths of this machine; the model card; rejected uploads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import OfflineModeIsEnabled

from imsm.cli.main import main
from imsm.cli.push import collect_files, replace_paths
from imsm.evaluation.result import read_result, write_result
from imsm.models.siamese.serialization import verify_model_folder
from imsm.utils.errors import UserError
from imsm.utils.manifest import write_manifest
from tests.helpers.config import result

SENT = [
    *("README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json"),
    *("gate.safetensors", "hashes.json", "result.json", "tokenizer.json", "tokenizer_config.json"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    backbone = tmp_path / "models" / "llama3"
    backbone.mkdir(parents=True)
    (backbone / "config.json").write_text("{}")
    overrides = ("backbone=llama3", f"backbone.name_or_path={backbone}", "peft=lora", "data=mrpc")
    record = result("imsm", *overrides, points=61.0)
    tasks = record["evaluation"]["tasks"]
    record["evaluation"]["original"] = {
        name: {**entry, "metrics": dict.fromkeys(entry["metrics"], 70.0)} for name, entry in tasks.items()
    }
    files: dict[str, Any] = {
        "config.json": {
            "_name_or_path": str(backbone),
            "backbone": {"name_or_path": str(backbone)},
            "model_type": "imsm",
        },
        "adapter/adapter_config.json": {"base_model_name_or_path": str(backbone), "peft_type": "LORA"},
        "tokenizer_config.json": {"name_or_path": str(backbone), "eos_token": "</s>", "sep_token": "/"},
        "tokenizer.json": {"vocab": {"/home": 0}},
    }
    for name, values in files.items():
        (folder / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "model" / name).write_text(json.dumps(values))
    for name in ("gate.safetensors", "adapter/adapter_model.safetensors"):
        (folder / "model" / name).write_bytes(b"x")
    write_manifest(folder / "model")
    for name in ("notes.txt", ".env", "optimizer.pt"):  # never sent
        (folder / "model" / name).write_text("secret")
    (folder / "evaluation").mkdir()
    write_result(folder, record)
    return folder


def sent(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_model_is_uploaded_with_a_card(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploaded: dict[str, Any] = {}

    def create_repo(self: HfApi, name: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        uploaded["private"] = private
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path) -> None:
        uploaded[repo_id] = sent(folder_path)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    before = sent(run)
    assert main(["push", str(run), "somebody/model"]) == 0
    assert uploaded == {"private": True, "somebody/model": SENT}
    assert capsys.readouterr().out == "pushed: https://huggingface.co/somebody/model\n"
    assert main(["push", str(run), "somebody/model", "--public"]) == 0
    assert uploaded["private"] is False
    assert sent(run) == before


def test_no_path_of_this_machine_is_sent(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    collect_files(run, tmp_path / "out")
    assert sent(tmp_path / "out") == SENT
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or str(tmp_path) not in path.read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["backbone"] == {"name_or_path": "llama3"}
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer == {"name_or_path": "llama3", "eos_token": "</s>", "sep_token": "/"}
    verify_model_folder(tmp_path / "out")
    assert read_result(tmp_path / "out")["config"]["backbone"]["name_or_path"] == "llama3"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.base_model is None


@pytest.mark.parametrize(
    ("path", "replaced"),
    [
        ("/home/me/.cache/huggingface/hub/models--meta-llama--Llama-3/snapshots/8c22/", "meta-llama/Llama-3"),
        ("/home/me/models/llama3/", "llama3"),
        ("~/models/llama3", "llama3"),
        ("C:\\models\\llama3", "llama3"),
        ("meta-llama/Llama-3", "meta-llama/Llama-3"),
        ("imsm:miniature", "imsm:miniature"),
        ("/", "/"),
        (3, 3),
    ],
)
def test_an_absolute_path_is_replaced_by_the_hub_id_or_its_last_name(path: Any, replaced: Any) -> None:
    assert replace_paths({"key": [path]}) == {"key": [replaced]}


def test_a_dry_run_lists_files_and_sizes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "somebody/model", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == SENT
    assert all(int(line.split()[0].replace(",", "")) > 0 for line in lines)


@pytest.mark.parametrize("name", ["gate.safetensors", "chat_template.jinja", "adapter/notes", "adapter"])
def test_symbolic_links_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    path = run / "model" / name
    if path.is_dir():
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    else:
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="symbolic link"):
        collect_files(run, tmp_path / "out")
    assert sent(tmp_path / "out") == []


@pytest.mark.parametrize("error", [OSError("no network\nand more"), OfflineModeIsEnabled("no"), Exception("refused")])
def test_a_failed_upload_is_one_line(
    run: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create_repo(self: HfApi, *_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    assert main(["push", str(run), "somebody/model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imsm: somebody/model: ")


@pytest.mark.parametrize("name", ["a/b/c", "../x", "somebody/", "a b/c", "somebody/model.git", "--name"])
def test_an_invalid_repository_is_rejected_before_anything_is_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "no-such-run", "--", name] if name.startswith("-") else ["push", "no-such-run", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "OWNER/NAME" in line


def test_a_run_without_a_trained_model_is_rejected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "config.json").unlink()
    for folder in (run, run / "no"):
        assert main(["push", str(folder), "somebody/model"]) == 2
        assert str(folder) in capsys.readouterr().err
