"""P-tuning (Liu et al., 2021): embeddings before the tokens that a small encoder makes."""

from __future__ import annotations

from typing import Literal

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count, Probability


def p_tuning(
    *,
    virtual_tokens: Count,
    encoder: Literal["MLP", "LSTM"],
    encoder_width: Count,
    encoder_layers: Count,
    encoder_dropout: Probability,
) -> AdapterSpec:
    """Embeddings from an encoder before every prompt; a saved model keeps them, not the encoder.

    Args:
        virtual_tokens: how many.
        encoder: what makes them.
        encoder_width: of its hidden layers.
        encoder_layers: of an LSTM (an MLP has three).
        encoder_dropout: of an LSTM.
    """
    from peft import PromptEncoderConfig, PromptEncoderReparameterizationType

    lstm = encoder == "LSTM"
    return AdapterSpec(
        PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=virtual_tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(encoder),
            encoder_hidden_size=encoder_width,
            encoder_num_layers=encoder_layers if lstm else 2,  # PEFT warns of another number
            encoder_dropout=encoder_dropout if lstm else 0.0,
        )
    )
