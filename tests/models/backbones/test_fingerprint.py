"""The fingerprint of a local backbone depends on its weights and configuration only."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.models.backbones.fingerprint import backbone_fingerprint


def fingerprint(folder: Path) -> str:
    return backbone_fingerprint(name_or_path=str(folder), revision=None, local_resolver=None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return model


def test_other_files_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("text")
    assert fingerprint(folder) == before
    copy = folder.rename(folder.with_name("renamed"))
    assert fingerprint(copy) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_weights_and_configuration_matter(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    (folder / name).write_bytes(b"other")
    assert fingerprint(folder) != before
