"""Architectures without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imsm.models.backbones.loading import MINIATURE, load_backbone
from imsm.models.backbones.meta_model import build_meta_model, find_config
from imsm.utils.errors import UserError
from tests.helpers.tiny_backbone import save_backbone

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_a_meta_model_has_the_parameters_of_the_loaded_model(tmp_path: Path) -> None:
    save_backbone(tmp_path, texts=["a b c"])
    config, source = find_config(path=str(tmp_path), revision=None, architecture=None)
    assert source == tmp_path / "config.json"
    model = build_meta_model(config, dtype="bfloat16")
    loaded = load_backbone(name_or_path=str(tmp_path), dtype="bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    shapes = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype, p.requires_grad) for name, p in loaded.named_parameters()}


def test_the_miniature_and_an_architecture_need_no_download() -> None:
    assert find_config(path=MINIATURE, revision=None, architecture=None)[1] is not None
    config, source = find_config(path="nobody/no-such-model", revision=None, architecture=LLAMA)
    assert (config.hidden_size, source) == (32, None)
    with pytest.raises(LookupError, match="nobody/no-such-model"):
        find_config(path="nobody/no-such-model", revision=None, architecture=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "lama"}, "architecture.model_type=lama"),
        ({"hiden_size": 8}, "did you mean backbone.architecture.hidden_size=8"),
        ({"hidden_size": "wide"}, "backbone.architecture"),
    ],
)
def test_invalid_architectures_are_rejected(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_config(path="nobody/no-such-model", revision=None, architecture={**LLAMA, **keys})


def test_a_plan_loads_no_kernel_of_the_hub(tmp_path: Path) -> None:
    save_backbone(tmp_path, texts=["a b c"])
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_attn_implementation": "someone/kernel"}))
    with pytest.raises(UserError, match="attn_implementation=someone/kernel"):
        find_config(path=str(tmp_path), revision=None, architecture=None)


def test_a_damaged_config_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe a model"):
        find_config(path=str(tmp_path), revision=None, architecture=None)
