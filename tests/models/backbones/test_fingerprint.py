"""The fingerprint of a local backbone depends on everything that changes its answers, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.models.backbones.fingerprint import attention_implementation, backbone_fingerprint
from imsm.models.backbones.loading import load_backbone
from tests.helpers.tiny_backbone import save_backbone


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


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "generation_config.json", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "merges.txt"),
        *("vocab.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
    ],
)
def test_weights_configuration_and_tokenizer_matter(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"other")
    assert fingerprint(folder) != before


def test_the_attention_is_the_one_that_transformers_chooses(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", texts=["a b"])
    loaded = load_backbone(name_or_path=str(folder))
    backbone = {"name_or_path": str(folder), "revision": None, "local_resolver": None, "dtype": "float32"}
    assert attention_implementation(**backbone, attn_implementation=None) == loaded.config._attn_implementation
    assert attention_implementation(**backbone, attn_implementation="eager") == "eager"
