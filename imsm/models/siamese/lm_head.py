"""Logits of given hidden states, computed by the backbone's own head.

The backbone's forward runs with its decoder replaced by the given hidden states. Calling the output
projection directly would need a table of what each architecture does after it, and configuration
names do not identify that: ``logits_scaling`` divides in Granite and multiplies in HyperCLOVA X,
and ``final_logit_softcapping`` is applied in float32 by some models only.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from imsm.models.siamese.dual_forward import patched_forward


class _DecoderOutput(BaseModelOutputWithPast):
    """A decoder output with hidden states only; every other field that a head reads is None."""

    def __getattr__(self, name: str) -> None:
        # protocols such as copy and pickle rely on AttributeError for missing dunder names
        if name.startswith("__"):
            raise AttributeError(name)


def apply_lm_head(backbone: PreTrainedModel, decoder: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the backbone's logits (B, T, V) of ``hidden_states`` (B, T, D).

    ``decoder`` is the part of ``backbone`` that computes hidden states.

    Raises:
        RuntimeError: the backbone's forward does not call ``decoder`` exactly once.
    """
    calls = 0

    def decoder_forward(*_: Any, **__: Any) -> _DecoderOutput:
        nonlocal calls
        calls += 1
        return _DecoderOutput(last_hidden_state=hidden_states)

    with patched_forward(decoder, decoder_forward):
        logits: torch.Tensor = _run_backbone(backbone, hidden_states).logits
    if calls != 1:
        raise RuntimeError(
            f"{type(backbone).__name__} called its {type(decoder).__name__} {calls} times in one forward: "
            "its head cannot be applied to interwoven hidden states"
        )
    return logits


def _run_backbone(backbone: PreTrainedModel, hidden_states: torch.Tensor) -> Any:
    """Run a backbone whose decoder is replaced; only the shape of its input matters."""
    try:
        return backbone(inputs_embeds=hidden_states, use_cache=False)
    except RuntimeError as error:
        if "input_ids" not in str(error):
            raise
        # Gemma 4 looks up token ids again and rejects embeddings that match no token
        tokens = torch.zeros(hidden_states.shape[:2], dtype=torch.long, device=hidden_states.device)
        return backbone(input_ids=tokens, use_cache=False)
