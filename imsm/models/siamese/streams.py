"""The original and the tuned stream: one set of weights, the adapter disabled or enabled.

Prompt learning has no tuner layers: its tuned stream reads virtual tokens first
(`imsm.models.siamese.virtual_tokens`).

Shapes: B batch, T positions, D hidden size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import Cache

from imsm.models.siamese.adapter_guard import AdapterGuard
from imsm.models.siamese.dual_forward import AdapterLayers
from imsm.models.siamese.kv_cache import DualStreamCache, PrefixedCache
from imsm.models.siamese.virtual_tokens import VirtualTokens

Stream = Literal["original", "tuned", "interwoven"]
STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")


class StreamRunner:
    """Runs a decoder as the original model, as the tuned model, or as both in one batch.

    Outside a ``with`` block the adapter is enabled, because gradient checkpointing recomputes the
    tuned stream during the backward pass.

    ``decoder`` is the part of ``model`` that computes hidden states.

    Attributes:
        adapter_layers: the tuner layers of ``model``.
        guard: detects changes of the adapter through PEFT.
        virtual_tokens: the virtual tokens of prompt learning, or None.
        batch_both: whether decoding runs both streams as one batch; set by
            `imsm.models.siamese.adapter_check`. Otherwise each stream has its own pass and cache.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        self.adapter_layers = AdapterLayers(model)
        self.guard = AdapterGuard(model)
        self.decoder = decoder
        self.virtual_tokens: VirtualTokens | None = None
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            self.virtual_tokens = VirtualTokens(model, decoder)
        self.batch_both = self.virtual_tokens is None and self.adapter_layers.supports_dual

    @property
    def layers(self) -> list[nn.Module]:
        """The outermost tuner layers."""
        return self.adapter_layers.layers

    @property
    def has_adapter(self) -> bool:
        """Whether there is a tuned stream."""
        return bool(self.layers) or self.virtual_tokens is not None

    def hidden_states(self, inputs: dict[str, Any], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """Return the last hidden states (B, T, D) of the "original" or the "tuned" stream."""
        # transformers' masks need the decoder's own cache, which counts virtual tokens
        if isinstance(cache, PrefixedCache):
            (cache,) = cache.decoder_caches
        if stream == "tuned" and self.virtual_tokens is not None:
            return self.virtual_tokens.hidden_states(inputs, cache=cache)
        with self.adapter_disabled() if stream == "original" else nullcontext():
            outputs = self.decoder(**inputs, past_key_values=cache, use_cache=cache is not None)
        hidden_states: torch.Tensor = outputs.last_hidden_state
        return hidden_states

    def both_hidden_states(
        self, inputs: dict[str, Any], *, cache: DualStreamCache | None, two_passes: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the original and the tuned hidden states, each (B, T, D).

        The original hidden states never carry a gradient. ``two_passes``: one after the other, for packed rows.
        """
        # Two passes with gradients: one batch would store the activations of both halves, and
        # checkpointing would recompute a layer outside the dual-stream context.
        two_passes = two_passes or (cache is None and torch.is_grad_enabled())
        batch_both = self.batch_both if cache is None else cache.batch_both
        if two_passes or not batch_both:
            original_cache, tuned_cache = (None, None) if cache is None else cache.decoder_caches
            with torch.no_grad():
                original = self.hidden_states(inputs, stream="original", cache=original_cache)
            return original, self.hidden_states(inputs, stream="tuned", cache=tuned_cache)
        dual_inputs = _twice(inputs)
        decoder_cache = None if cache is None else cache.decoder_caches[0]
        with self.adapter_layers.dual():
            outputs = self.decoder(**dual_inputs, past_key_values=decoder_cache, use_cache=cache is not None)
        original, tuned = outputs.last_hidden_state.chunk(2)
        return original, tuned

    def copy_capabilities(self, other: StreamRunner) -> None:
        """Adopt what the adapter check found for ``other``, which runs the same layers."""
        self.batch_both = other.batch_both
        self.adapter_layers.copy_sharing(other.adapter_layers)

    def head_disabled(self) -> AbstractContextManager[None]:
        """Disable the tuner layers outside the decoder, those that `imsm.models.siamese.lm_head` runs."""
        return self.adapter_layers.disabled(outside=self.decoder)

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Disable the adapter: the decoder equals the original model bit for bit."""
        return self.adapter_layers.disabled()


def _twice(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of 2B rows; masks can be given by kind of layer."""
    return {
        name: _twice(value) if isinstance(value, dict) else torch.cat([value, value]) for name, value in inputs.items()
    }
