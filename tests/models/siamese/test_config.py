"""`SiameseConfig`: round trip, defaults and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.models.siamese.config import SiameseConfig
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import QUERY_GATE, tiny_backbone


def test_configuration_is_equal_after_saving_and_loading(tmp_path: Path) -> None:
    config = SiameseConfig(
        text_config=tiny_backbone("gemma3").config,
        backbone={"name_or_path": "tiny"},
        gate=QUERY_GATE,
        pooling="max",
        supports_inner_padding=True,
    )
    config.save_pretrained(tmp_path)
    loaded = SiameseConfig.from_pretrained(tmp_path)
    for name in ("backbone", "gate", "pooling", "stream", "supports_cache", "supports_inner_padding"):
        assert getattr(loaded, name) == getattr(config, name), name
    assert (loaded.hidden_size, loaded.vocab_size) == (32, 97)
    assert loaded.text_config.layer_types == config.text_config.layer_types


def test_special_tokens_and_attention_are_those_of_the_backbone() -> None:
    text_config = tiny_backbone("llama").config
    config = SiameseConfig(text_config=text_config)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.text_config is not text_config  # transformers writes into nested configurations
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", {"": "someone/kernel"}, {"text_config": "someone/kernel"}])
def test_kernels_of_the_hub_are_rejected_under_every_key(key: str, value: object) -> None:
    text_config = tiny_backbone("llama").config.to_dict()
    with pytest.raises(UserError, match="attn_implementation=someone/kernel"):
        SiameseConfig.from_dict({"text_config": text_config, key: value})


def test_a_saved_model_is_never_an_encoder_decoder() -> None:
    assert not SiameseConfig.from_dict({"is_encoder_decoder": True}).is_encoder_decoder
