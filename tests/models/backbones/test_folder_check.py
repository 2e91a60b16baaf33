"""Damaged, missing and unsuitable files of a local backbone are one line, before weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, BertLMHeadModel

from imsm.models.backbones.loading import load_backbone, load_tokenizer
from imsm.models.backbones.meta_model import find_config
from imsm.utils.errors import UserError
from tests.helpers.damage import DAMAGES
from tests.helpers.tiny_backbone import save_backbone


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    return save_backbone(tmp_path / "backbone", texts=["a b c"])


def error_of(function, path: Path, /, **arguments: object) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as caught:
        function(**arguments)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"flipped", "missing"}))
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_json_is_one_line_that_names_the_file(backbone: Path, name: str, damage: str) -> None:
    DAMAGES[damage](backbone / name)
    file = backbone / name
    if (name, damage) == ("generation_config.json", "mapping"):
        load_backbone(name_or_path=str(backbone))
        return
    # a configuration without keys is valid JSON, but describes no model and no tokenizer
    path = backbone if damage == "mapping" else file
    if (name, damage) != ("config.json", "mapping"):  # a tokenizer needs no configuration of a model
        error_of(load_tokenizer, path, name_or_path=str(backbone))
    if damage != "mapping" or name == "config.json":
        error_of(load_backbone, path, name_or_path=str(backbone))
        error_of(find_config, path, path=str(backbone), revision=None, architecture=None)


def test_a_folder_without_a_tokenizer_says_so(backbone: Path) -> None:
    (backbone / "tokenizer.json").unlink()
    assert "has no tokenizer" in error_of(load_tokenizer, backbone, name_or_path=str(backbone))
    (backbone / "tokenizer_config.json").unlink()
    assert "has no tokenizer" in error_of(load_tokenizer, backbone, name_or_path=str(backbone))
    load_backbone(name_or_path=str(backbone))  # its weights are complete


def test_an_encoder_is_rejected_before_its_weights_are_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    BertConfig(vocab_size=40, **sizes).save_pretrained(tmp_path)
    assert "is an encoder" in error_of(load_backbone, tmp_path, name_or_path=str(tmp_path))
    assert "is an encoder" in error_of(find_config, tmp_path, path=str(tmp_path), revision=None, architecture=None)
    BertLMHeadModel(BertConfig(vocab_size=40, is_decoder=True, **sizes)).save_pretrained(tmp_path)
    load_backbone(name_or_path=str(tmp_path))
