"""The longest sequence of a configuration."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BloomConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config

from imsm.models.backbones.positions import position_limit


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (GPT2Config(n_positions=300), 300),
        (BloomConfig(), None),
        # a window of attention is no limit
        (MistralConfig(max_position_embeddings=4096, sliding_window=16), 4096),
        (LlamaConfig(max_position_embeddings=512, rope_parameters=rope("linear", factor=4.0)), 2048),
        (LlamaConfig(max_position_embeddings=512, rope_parameters=rope("dynamic", factor=2.0)), 1024),
        # Llama 3.1's own positions are more than its factor gives
        (
            LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters=rope(
                    "llama3",
                    factor=8.0,
                    original_max_position_embeddings=8192,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                ),
            ),
            131072,
        ),
        (
            LlamaConfig(
                max_position_embeddings=32768,
                rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32768),
            ),
            131072,
        ),
        (Gemma3TextConfig(max_position_embeddings=1000), 1000),
        (Phi3Config(max_position_embeddings=4096, original_max_position_embeddings=4096), 4096),
    ],
)
def test_position_limit(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit
