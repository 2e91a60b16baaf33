"""`imsm push`: the uploaded files, the model card, and rejected uploads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl

from imsm.cli.main import main
from imsm.evaluation.result import write_result
from tests.helpers.config import result


@pytest.fixture
def run(tmp_path: Path) -> Path:
    record = result("imsm", "backbone=llama3", "peft=lora", "data=mrpc", points=61.0)
    tasks = record["evaluation"]["tasks"]
    record["evaluation"]["original"] = {
        name: {**entry, "metrics": dict.fromkeys(entry["metrics"], 70.0)} for name, entry in tasks.items()
    }
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "gate.safetensors").write_bytes(b"x")
    write_result(folder, record)
    return folder


def test_the_model_is_uploaded_with_a_card(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploaded: dict[str, Any] = {}

    def create_repo(self: HfApi, name: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        uploaded["private"] = private
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path) -> None:
        uploaded[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert main(["push", str(run), "somebody/model"]) == 0
    assert uploaded == {"private": True, "somebody/model": ["README.md", "gate.safetensors"]}
    assert capsys.readouterr().out == "pushed: https://huggingface.co/somebody/model\n"
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.base_model == "meta-llama/Meta-Llama-3-8B"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert main(["push", str(run), "somebody/model", "--public"]) == 0
    assert uploaded["private"] is False


def test_a_failed_upload_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create_repo(self: HfApi, *_: Any, **__: Any) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    assert main(["push", str(run), "somebody/model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imsm: somebody/model: ") and "(no network)" in line


def test_a_run_without_a_trained_model_is_rejected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "gate.safetensors").unlink()
    (run / "model").rmdir()
    for folder in (run, run / "no"):
        assert main(["push", str(folder), "somebody/model"]) == 2
        assert str(folder) in capsys.readouterr().err
