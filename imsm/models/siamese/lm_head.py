"""Logits of a given memory: the backbone's own head, whatever it does after its projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from imsm.models.siamese.dual_forward import patched_forward


class _Memory(BaseModelOutputWithPast):
    """A body's output with a memory and nothing else; whatever a head looks for besides is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def apply_lm_head(backbone: PreTrainedModel, body: nn.Module, memory: torch.Tensor) -> torch.Tensor:
    """The backbone's logits of memories that are not its own: (B, T, D) -> (B, T, V).

    The backbone's forward runs with its body answering ``memory``, so that heads that scale
    (Cohere, Granite) or cap (Gemma 2) their logits do so here too.

    Args:
        backbone: a causal language model.
        body: the part of it that makes memories.
        memory: (B, T, D).

    Raises:
        RuntimeError: the backbone's forward does not go through ``body``.
    """
    calls = 0

    def answer(*_: Any, **__: Any) -> _Memory:
        nonlocal calls
        calls += 1
        return _Memory(last_hidden_state=memory)

    with patched_forward(body, answer):
        logits = _pass(backbone, memory)
    if calls != 1:
        raise RuntimeError(
            f"{type(backbone).__name__} called its {type(body).__name__} {calls} times for one "
            "pass of its head: this backbone's head cannot be used on an interwoven memory"
        )
    return logits


def _pass(backbone: PreTrainedModel, memory: torch.Tensor) -> torch.Tensor:
    """The logits of a pass whose body answers; what it is fed matters in its shape alone."""
    try:
        return backbone(inputs_embeds=memory, use_cache=False).logits
    except RuntimeError as error:
        if "input_ids" not in str(error):
            raise
        # Gemma 4 looks tokens up twice, and wants to know which ones an embedding stands for
        tokens = torch.zeros(memory.shape[:2], dtype=torch.long, device=memory.device)
        return backbone(input_ids=tokens, use_cache=False).logits
