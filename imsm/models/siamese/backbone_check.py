"""Whether a backbone can be interwoven at all: found out on the model itself, in a few passes.

What the siamese model takes for granted of `AutoModelForCausalLM` is no rule there: some models in
it look at later tokens, count positions in their own way or draw at random while they are trained.
With such a backbone nothing would fail, and every result would be wrong.

Legend: T positions of the probe, D width of a memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from imsm.models.siamese.decoder import find_decoder
from imsm.models.siamese.lm_head import apply_lm_head
from imsm.utils.errors import UserError

_LENGTH = 9
_PADDING = 3
_INSIDE = 24
"""Padding inside a text: enough that a model which counts places in place of tokens shows it."""
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
"""What a pass ends with that a model does not take."""
_EXACT = 1e-3
"""How far any position may be off, relatively, in float32."""
_ROUNDED = 5e-2
"""How far the median position may be off in half precision: tens of layers of rounding, which may
send a token of a mixture of experts elsewhere."""


@dataclass(frozen=True, kw_only=True)
class BackboneCapabilities:
    """What a backbone can do.

    ``cached``: a text that is fed in pieces over a `DynamicCache` gives what it gives in one.
    ``padded_inside``: so it does with padding between the pieces.
    """

    supports_cache: bool
    supports_inner_padding: bool


@torch.no_grad()
def check_backbone(backbone: PreTrainedModel) -> BackboneCapabilities:
    """Refuse a backbone that would give wrong results; say what it can do.

    Five things must hold: the logits are a function of the body's memories; these depend on earlier
    tokens alone; positions count from 0; padding on the left changes nothing; training mode draws
    nothing at random. (Each would pass unnoticed: see the tests.)

    Args:
        backbone: frozen, its dropout silenced (`imsm.models.backbones.loading.disable_dropout`), without an
            adapter. Its mode is left as it was.

    Returns:
        Whether it goes on from a cache. Where not, texts are generated without one: slower, and
        the same tokens.

    Raises:
        UserError: one of the five does not hold, or the model cannot be run on tokens alone.
    """
    mode = backbone.training
    backbone.eval()
    try:
        probe = _BackboneChecker(backbone)
        reason = probe.failure_reason()
        cached = reason is None and probe.cache_matches()
        padded_inside = cached and probe.cache_matches_with_padding()
    except _FAILURES as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = f"a pass on tokens alone fails ({first})"
    finally:
        backbone.train(mode)
    if reason is not None:
        raise UserError(
            f"{type(backbone).__name__} cannot be a backbone: {reason}. Choose another one "
            "(docs/compatibility.md lists those that can)"
        )
    return BackboneCapabilities(supports_cache=cached, supports_inner_padding=padded_inside)


class _BackboneChecker:
    """Two rows of tokens that differ in the last one, and the passes over them."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.body = find_decoder(backbone)
        config = backbone.config.get_text_config(decoder=True)
        self.cache_config = config
        words = min(config.vocab_size, 1000)
        generator = torch.Generator().manual_seed(0)
        row = torch.randint(words // 4, words // 2, (_LENGTH,), generator=generator)
        other = row.clone()
        other[-1] -= words // 8
        self.ids = torch.stack([row, other]).to(backbone.device)  # (2, T)
        self.memory = self._memory(self.ids)  # (2, T, D)

    def failure_reason(self) -> str | None:
        """Why the backbone cannot be interwoven; None if it can."""
        first, second = self.memory[:, :-1]
        if not _allclose(first, second):
            return (
                "a later token changes what came before it, so it reads both ways and is no causal "
                "model (an encoder may have to be told: is_decoder=true in its config.json)"
            )
        outputs, own = self._own_pass()
        if not _allclose(own, self.memory):
            return "its positions do not count from 0, so explicit ones give other memories"
        try:
            logits = apply_lm_head(self.backbone, self.body, self.memory)
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            return f"its head asks for more than the last hidden states ({error})"
        if not _allclose(outputs, logits):
            return "its logits are no function of its last hidden states alone"
        if not _allclose(self._padded_memory(), self.memory[:1]):
            return "padding changes its memories, since it reads no mask or no position ids"
        self.backbone.train()
        again = [self._memory(self.ids) for _ in (1, 2)]
        self.backbone.eval()
        if not all(_allclose(each, self.memory, exact=True) for each in again):
            return "in training mode its passes draw at random, and no two of them agree"
        return None

    def cache_matches(self) -> bool:
        """Whether a cache can be trusted, with padding in one of the rows."""
        mask = torch.ones_like(self.ids)
        mask[1, :_PADDING] = 0
        whole = self._memory(self.ids, mask=mask)
        try:
            cache = DynamicCache(config=self.cache_config)
            pieces = []
            for start, end in ((0, 5), (5, 6), (6, _LENGTH)):
                ids = self.ids[:, start:end]
                pieces.append(self._memory(ids, mask=mask[:, :end], cache=cache))
                if cache.get_seq_length() != end:
                    return False
        except _FAILURES:
            return False
        real = mask.bool()
        return _allclose(torch.cat(pieces, dim=1)[real], whole[real])

    def cache_matches_with_padding(self) -> bool:
        """Whether padding between two pieces changes nothing (positions are counted in tokens)."""
        text = self.ids[:1]
        padding = text.new_zeros((1, _INSIDE))
        ids = torch.cat([text[:, :4], padding, text[:, 4:]], dim=1)
        mask = torch.ones_like(ids)
        mask[:, 4 : 4 + _INSIDE] = 0
        try:
            cache = DynamicCache(config=self.cache_config)
            first = self._memory(ids[:, :4], mask=mask[:, :4], cache=cache)
            rest = self._memory(ids[:, 4:], mask=mask, cache=cache)
        except _FAILURES:
            return False
        pieces = torch.cat([first, rest[:, _INSIDE:]], dim=1)
        return _allclose(pieces, self.memory[:1]) and _allclose(pieces[:, 4:], self.memory[:1, 4:])

    def _memory(
        self, ids: torch.Tensor, *, mask: torch.Tensor | None = None, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """The body's memories with everything said that `imsm.models.siamese.inputs` says."""
        mask = torch.ones_like(ids) if mask is None else mask
        outputs = self.body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return outputs.last_hidden_state

    def _own_pass(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The backbone's logits and memories when it is given tokens and nothing else."""
        seen: list[torch.Tensor] = []
        hook = self.body.register_forward_hook(
            lambda module, arguments, outputs: seen.append(outputs.last_hidden_state)
        )
        try:
            outputs: Any = self.backbone(input_ids=self.ids, use_cache=False)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise RuntimeError(f"its body runs {len(seen)} times in a pass")
        return outputs.logits, seen[0]

    def _padded_memory(self) -> torch.Tensor:
        """The first row's memories, computed with padding on its left; (1, T, D)."""
        padding = self.ids.new_zeros((1, _PADDING))
        mask = torch.cat([padding, torch.ones_like(self.ids[:1])], dim=1)
        padded = torch.cat([padding, self.ids[:1]], dim=1)
        return self._memory(padded, mask=mask)[:, _PADDING:]


def _allclose(one: torch.Tensor, other: torch.Tensor, *, exact: bool = False) -> bool:
    """Whether two tensors (..., D) agree; ``exact``: to the last position in half precision too."""
    if one.shape != other.shape:
        return False
    exact = exact or one.dtype == torch.float32
    one, other = one.float(), other.float()
    off = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-9)
    return bool(off.max() <= _EXACT) if exact else bool(off.median() <= _ROUNDED)
