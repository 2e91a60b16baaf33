"""`find_decoder` on architectures whose attribute names mislead."""

from __future__ import annotations

import pytest
from torch import nn

from imsm.models.backbones.decoder import find_decoder
from scripts.compatibility.tiny_models import tiny_backbone, tiny_configuration
from tests.models.siamese import tiny


def test_decoder_holds_the_embeddings_whatever_its_name() -> None:
    modern = tiny_backbone(tiny_configuration("modernbert-decoder"))
    assert modern.get_decoder() is modern.get_output_embeddings()  # by its name
    assert find_decoder(modern) is modern.model
    with_images = tiny_backbone(tiny_configuration("gemma3"))
    assert find_decoder(with_images) is with_images.model.language_model


def test_backbone_without_separate_decoder_is_rejected() -> None:
    backbone = tiny.tiny_backbone("llama")
    backbone.model = nn.Identity()
    backbone.get_input_embeddings = lambda: nn.Embedding(2, 2)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        find_decoder(backbone)
