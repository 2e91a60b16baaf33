"""An adapter at another strength: W = W0 + a (W_t - W0), layer by layer (WiSE-FT, 2109.01903).

    y = y_o + a (y_t - y_o)        y_o, y_t: what the layer answers with its adapter off and on

For a layer that is linear in its input this is the model whose weights lie on the line from the
original's to the tuned ones: LoRA's and AdaLoRA's a B A, DoRA's merged weights, (IA)^3's factors
1 + a (l - 1), a bias or a norm's weight. Where an adapter is no linear map (LoRAMoE's routed
experts) the layer's update is scaled. It is exact at a = 0 and a = 1, in bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache

from imsm.models.siamese.dual_forward import patched_forward
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.utils.errors import UserError

_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class ScaledAdapterStreams(StreamRunner):
    """Streams whose tuned one has its adapter at another strength.

    Args:
        model: as of `Streams`.
        body: likewise.
        scale: a.
    """

    def __init__(self, model: nn.Module, body: nn.Module, *, scale: float) -> None:
        super().__init__(model, body)
        self.scale = scale
        self.doubled = False

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """The memories (B, T, D) of the original stream, or of the tuned one at this strength."""
        if stream == "original":
            return super().hidden_states(inputs, stream=stream, cache=cache)
        with self._scaled():
            return super().hidden_states(inputs, stream=stream, cache=cache)

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, off in self._off.items():
                forward = partial(_between, off, layer.forward, self.scale)
                stack.enter_context(patched_forward(layer, forward))
            yield


def build_scaled_model(model: SiameseForCausalLM, scale: float) -> SiameseForCausalLM:
    """A model whose tuned stream has the adapter at strength ``scale``; 1 is as it was trained.

    Args:
        model: has an adapter; its weights are shared, and it stays what it is.
        scale: 0: the original, bit for bit; above 1 the update is carried further.

    Raises:
        UserError: the adapter has no strength: nothing lies between the original and the tuned
            model, or what lies at the ends is neither of them.
    """
    name = _method(model)
    if model.streams.virtual_tokens is not None:
        raise UserError(
            f"adapter_scale: {name} changes no weights, it puts {model.streams.virtual_tokens.count} "
            "learned positions before the text, so there is no W0 + a (W - W0); leave "
            "adapter_scale out"
        )
    if not model.streams.has_adapter:
        raise UserError("adapter_scale: the model has no adapter")
    made = _with_scale(model, scale)
    _check(model, name)
    return made


def _with_scale(model: SiameseForCausalLM, scale: float) -> SiameseForCausalLM:
    made = derive_model(model, SiameseForCausalLM, stream="tuned", gate=None)
    made.streams = ScaledAdapterStreams(model.adapted, model.streams.decoder, scale=scale)
    return made


@torch.no_grad()
def _check(model: SiameseForCausalLM, name: str) -> None:
    """At 0 the original, at 1 the tuned model, bit for bit, whole and piece by piece.

    Raises:
        UserError: it is not.
    """
    words = model.backbone.config.get_text_config(decoder=True).vocab_size
    tokens = ((words // 3 + 17 * torch.arange(12, device=model.device)) % words).view(2, 6)
    for scale, stream in ((0.0, "original"), (1.0, "tuned")):
        wanted = _read(model.streams, tokens, stream=stream)
        try:
            found = _read(_with_scale(model, scale).streams, tokens, stream="tuned")
            same = all(map(torch.equal, wanted, found))
        except _FAILURES as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"adapter_scale: {name} cannot be scaled layer by layer ({type(error).__name__}: "
                f"{first}); leave adapter_scale out"
            ) from error
        if not same:
            raise UserError(
                f"adapter_scale: {name} at strength {scale:g} is not the {stream} model, so what "
                "lies between is no path from one to the other; leave adapter_scale out"
            )


def _read(streams: StreamRunner, tokens: torch.Tensor, *, stream: str) -> list[torch.Tensor]:
    """The memories of a text in one piece, and in two with a cache."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    whole = {"input_ids": tokens, "position_ids": places}
    found = [streams.hidden_states(whole, stream=stream, cache=None)]
    cache = DynamicCache()
    for piece in (slice(0, 4), slice(4, None)):
        part = {key: value[:, piece] for key, value in whole.items()}
        found.append(streams.hidden_states(part, stream=stream, cache=cache))
    return found


def _between(
    off: Callable[[], AbstractContextManager[None]],
    forward: Callable[..., Any],
    scale: float,
    *arguments: Any,
    **named: Any,
) -> Any:
    """What a layer answers between its adapter off and on."""
    with off():
        original = forward(*arguments, **named)
    return _lerp(original, forward(*arguments, **named), scale)


def _lerp(original: Any, tuned: Any, scale: float) -> Any:
    if isinstance(original, tuple):
        return tuple(_lerp(one, other, scale) for one, other in zip(original, tuned, strict=True))
    return original if original is None else torch.lerp(original, tuned, scale)


def _method(model: SiameseForCausalLM) -> str:
    """What the adapter's method is called."""
    config = getattr(model.adapted, "active_peft_config", None)
    return "none" if config is None else str(config.peft_type.value)
