"""Check on the model itself, in a few passes, whether a backbone can be interwoven.

Not every `AutoModelForCausalLM` satisfies the assumptions of the siamese model: some models attend
to later tokens, count positions differently or sample in training mode. Such a backbone would raise
no error and every result would be wrong.

Shapes: T positions of the probe, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from imsm.models.backbones.decoder import find_decoder
from imsm.models.siamese.inputs import decoder_inputs
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.utils.errors import UserError, first_line

_LENGTH = 9
_PADDING = 3
_INNER_PADDING = 24
"""Padding inside a sequence, long enough to reveal models that count columns instead of tokens."""
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors raised by models that do not support a kind of input."""
_FLOAT32_TOLERANCE = 1e-3
"""Maximum relative error of any position in float32."""
_HALF_TOLERANCE = 5e-2
"""Maximum relative error of the median position in half precision. Rounding accumulates over tens of
layers, and can route a token to another expert."""


@dataclass(frozen=True, kw_only=True)
class BackboneCapabilities:
    """Optional features of a backbone.

    Args:
        supports_cache: chunks with a `DynamicCache` give the same result as one pass.
        supports_inner_padding: they also do with padding between the chunks.
    """

    supports_cache: bool
    supports_inner_padding: bool


@torch.no_grad()
def check_backbone(backbone: PreTrainedModel) -> BackboneCapabilities:
    """Reject a backbone that would give wrong results, and return its capabilities.

    Requirements: the logits are a function of the decoder's last hidden states; these depend on
    earlier tokens only; positions count from 0; left padding changes nothing; training mode is deterministic.
    ``backbone`` is frozen and has no adapter; its dropout is disabled. Its mode is restored.

    Raises:
        UserError: a requirement is not met, or the model needs more than tokens as input.
    """
    mode = backbone.training
    backbone.eval()
    try:
        checker = _BackboneChecker(backbone)
        reason = checker.failure_reason()
        supports_cache = reason is None and checker.cache_matches()
        supports_inner_padding = supports_cache and checker.cache_matches_with_padding()
    except _FAILURES as error:
        reason = f"a forward pass on tokens fails ({first_line(error)})"
    finally:
        backbone.train(mode)
    if reason is not None:
        raise UserError(
            f"backbone={type(backbone).__name__}: cannot be interwoven: {reason}; choose a model listed in "
            "docs/compatibility.md"
        )
    return BackboneCapabilities(supports_cache=supports_cache, supports_inner_padding=supports_inner_padding)


class _BackboneChecker:
    """Two sequences that differ in the last token, and the passes over them."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.decoder = find_decoder(backbone)
        self.text_config = backbone.config.get_text_config(decoder=True)
        vocab_size = min(self.text_config.vocab_size, 1000)
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(vocab_size // 4, vocab_size // 2, (_LENGTH,), generator=generator)
        second = first.clone()
        second[-1] -= vocab_size // 8
        self.ids = torch.stack([first, second]).to(backbone.device)  # (2, T)
        self.hidden_states = self._hidden_states(self.ids)  # (2, T, D)

    def failure_reason(self) -> str | None:
        """Return why the backbone cannot be interwoven, or None if it can."""
        first, second = self.hidden_states[:, :-1]
        if not _allclose(first, second):
            return (
                "a later token changes earlier hidden states, so it is not causal "
                "(an encoder may need is_decoder=true in its config.json)"
            )
        logits, hidden_states = self._default_pass()
        if not _allclose(hidden_states, self.hidden_states):
            return "its positions do not count from 0, so explicit positions change the hidden states"
        try:
            head_logits = apply_lm_head(self.backbone, self.decoder, self.hidden_states)
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            return f"its head needs more than the last hidden states ({error})"
        if not _allclose(logits, head_logits):
            return "its logits are not a function of its last hidden states alone"
        if not _allclose(self._padded_hidden_states(), self.hidden_states[:1]):
            return "padding changes its hidden states, since it ignores the mask or the position ids"
        # twice: random depth may not affect a single pass
        self.backbone.train()
        repeated = [self._hidden_states(self.ids) for _ in (1, 2)]
        self.backbone.eval()
        if not all(_allclose(each, self.hidden_states, every_position=True) for each in repeated):
            return "its training mode is not deterministic"
        return None

    def cache_matches(self) -> bool:
        """Whether chunks with a cache equal one pass, with padding in one of the rows."""
        mask = torch.ones_like(self.ids)
        mask[1, :_PADDING] = 0
        full = self._hidden_states(self.ids, mask=mask)
        try:
            cache = DynamicCache(config=self.text_config)
            chunks = []
            for start, end in ((0, 5), (5, 6), (6, _LENGTH)):
                chunks.append(self._hidden_states(self.ids[:, start:end], mask=mask[:, :end], cache=cache))
                if cache.get_seq_length() != end:
                    return False
        except _FAILURES:
            return False
        real = mask.bool()
        return _allclose(torch.cat(chunks, dim=1)[real], full[real])

    def cache_matches_with_padding(self) -> bool:
        """Whether padding between two chunks changes nothing."""
        text = self.ids[:1]
        padding = text.new_zeros((1, _INNER_PADDING))
        ids = torch.cat([text[:, :4], padding, text[:, 4:]], dim=1)
        mask = torch.ones_like(ids)
        mask[:, 4 : 4 + _INNER_PADDING] = 0
        try:
            cache = DynamicCache(config=self.text_config)
            first = self._hidden_states(ids[:, :4], mask=mask[:, :4], cache=cache)
            rest = self._hidden_states(ids[:, 4:], mask=mask, cache=cache)
        except _FAILURES:
            return False
        chunks = torch.cat([first, rest[:, _INNER_PADDING:]], dim=1)
        # the second chunk also alone: in half precision the median over all positions could hide it
        return _allclose(chunks, self.hidden_states[:1]) and _allclose(chunks[:, 4:], self.hidden_states[:1, 4:])

    def _hidden_states(
        self, ids: torch.Tensor, *, mask: torch.Tensor | None = None, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """Run the decoder with explicit mask and positions."""
        mask = torch.ones_like(ids) if mask is None else mask
        inputs = decoder_inputs(ids, attention_mask=mask, cache=cache)
        outputs = self.decoder(**inputs, past_key_values=cache, use_cache=cache is not None)
        hidden_states: torch.Tensor = outputs.last_hidden_state
        return hidden_states

    def _default_pass(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and hidden states of the backbone given nothing but tokens."""
        outputs: list[torch.Tensor] = []
        hook = self.decoder.register_forward_hook(
            lambda module, args, output: outputs.append(output.last_hidden_state)
        )
        try:
            result: Any = self.backbone(input_ids=self.ids, use_cache=False)
        finally:
            hook.remove()
        if len(outputs) != 1:
            raise RuntimeError(f"its decoder runs {len(outputs)} times per pass")
        return result.logits, outputs[0]

    def _padded_hidden_states(self) -> torch.Tensor:
        """Return the first row's hidden states (1, T, D), computed with left padding."""
        padding = self.ids.new_zeros((1, _PADDING))
        mask = torch.cat([padding, torch.ones_like(self.ids[:1])], dim=1)
        padded = torch.cat([padding, self.ids[:1]], dim=1)
        return self._hidden_states(padded, mask=mask)[:, _PADDING:]


def _allclose(one: torch.Tensor, other: torch.Tensor, *, every_position: bool = False) -> bool:
    """Whether (..., D) tensors agree: every position in float32, else the median one."""
    if one.shape != other.shape:
        return False
    every_position = every_position or one.dtype == torch.float32
    one, other = one.float(), other.float()
    errors = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-9)
    return bool(errors.max() <= _FLOAT32_TOLERANCE) if every_position else bool(errors.median() <= _HALF_TOLERANCE)
