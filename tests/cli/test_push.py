"""A run on the hub: its adapter, its gate, and a card made of what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl

from imsm.cli import push
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


def test_the_card_says_what_was_found_and_on_what(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: dict[str, Any] = {}

    def create(self: HfApi, name: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        sent["private"] = private
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload(self: HfApi, *, repo_id: str, folder_path: Path) -> None:
        sent[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert push.main(["--run", str(run), "--to", "somebody/arm"]) == 0
    assert sent == {"private": True, "somebody/arm": ["README.md", "gate.safetensors"]}
    assert "somebody/arm" in capsys.readouterr().out
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.base_model == "meta-llama/Meta-Llama-3-8B"
    assert card.data.datasets == ["nyu-mll/glue"]
    rows = [line for line in card.text.splitlines() if line.startswith("| mrpc")]
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == [
        "mrpc", "accuracy", "200", "70.0", "61.0", "yes",
    ]  # fmt: skip
    assert "from_pretrained" in card.text and "It forgets" in card.text


def test_what_cannot_be_pushed_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: HfApi, *_: Any, **__: Any) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert push.main(["--run", str(run), "--to", "somebody/arm"]) == 2
    assert capsys.readouterr().err == "imsm: --to somebody/arm: the hub refused (no network)\n"
    (run / "model" / "gate.safetensors").unlink()
    (run / "model" / "README.md").unlink()
    (run / "model").rmdir()
    assert push.main(["--run", str(run), "--to", "somebody/arm"]) == 2
    assert "nothing was trained" in capsys.readouterr().err
    assert push.main(["--run", str(run / "no"), "--to", "somebody/arm"]) == 2
    assert "no such folder" in capsys.readouterr().err
