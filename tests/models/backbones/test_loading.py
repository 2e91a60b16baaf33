"""Resolving, loading and freezing backbones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from imsm.models.backbones import gguf_package
from imsm.models.backbones.loading import disable_dropout, load_backbone, load_tokenizer, resolve_path
from imsm.utils.errors import UserError
from tests.helpers.tiny_backbone import save_backbone

GEMMA = {"name_or_path": "google/gemma-3-270m", "local_resolver": "imsm.models.backbones.gemma3_gguf.local_path"}


def test_a_local_resolver_replaces_its_own_hub_id_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_package.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(gguf_package, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(gguf_package, "is_complete", lambda folder: True)
    assert resolve_path(**GEMMA).startswith(str(tmp_path))
    assert resolve_path(name_or_path="/my/model", local_resolver=GEMMA["local_resolver"]) == "/my/model"
    assert (
        resolve_path(name_or_path="google/gemma-3-1b-pt", local_resolver=GEMMA["local_resolver"])
        == "google/gemma-3-1b-pt"
    )


def test_a_loaded_backbone_is_frozen_and_has_no_dropout(tmp_path: Path) -> None:
    save_backbone(tmp_path, texts=["a b c"])
    model = load_backbone(name_or_path=str(tmp_path), dtype="bfloat16")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.model.layers[0].self_attn.attention_dropout = 0.1
    disable_dropout(model)
    model.train()
    ids = torch.tensor([[5, 6, 5]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_loading_errors_name_the_backbone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such-model: cannot be loaded"):
        load_backbone(name_or_path=str(tmp_path / "no-such-model"))
    with pytest.raises(UserError, match="no-such-model: cannot be loaded"):
        load_tokenizer(name_or_path=str(tmp_path / "no-such-model"))


def test_a_tokenizer_pads_on_the_left_and_has_a_padding_token(tmp_path: Path) -> None:
    save_backbone(tmp_path, texts=["a b c"])
    tokenizer = load_tokenizer(name_or_path=str(tmp_path))
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None


def test_a_tokenizer_whose_settings_fail_only_when_used_is_rejected(tmp_path: Path) -> None:
    save_backbone(tmp_path, texts=["a b c"])
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": "x"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(name_or_path=str(tmp_path))


@pytest.mark.parametrize("name", ["os.system", "imsm.models.backbones.loading.Path", "imsm.models.backbones.no.name"])
def test_only_functions_of_the_backbones_package_are_resolvers(name: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.local_resolver="):
        resolve_path(name_or_path="some/model", local_resolver=name)
