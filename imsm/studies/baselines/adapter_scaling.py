"""Scale an adapter: W = W0 + a (W_t - W0), layer by layer (WiSE-FT, 2109.01903).

    y = y_o + a (y_t - y_o)        y_o, y_t: the layer's outputs with its adapter disabled and enabled

For a layer that is linear in its input this is the model with interpolated weights: LoRA's and AdaLoRA's
a B A, DoRA's merged weights, (IA)^3's factors 1 + a (l - 1), a bias or a norm's weight. If an adapter is
not linear (LoRAMoE's routed experts), the layer's update is scaled. Exact at a = 0 and a = 1, also in
bfloat16.

The scale may grow with depth (LiNeS, 2410.17146): in block l of L it is a_l = a + b (l - 1) / (L - 1), and a outside
of the blocks (embeddings, final norm, head).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache

from imsm.models.siamese.dual_forward import Disable, Forward
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import StreamRunner
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.utils.errors import UserError

# Custom adapters may fail in any of these ways on the outputs of scaled layers.
_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class ScaledAdapterStreams(StreamRunner):
    """Streams whose tuned one has its adapter scaled by ``scale`` (a) in the first block, by ``last`` in the last."""

    def __init__(self, model: nn.Module, decoder: nn.Module, *, scale: float, last: float) -> None:
        super().__init__(model, decoder)
        depths = relative_depths(model, self.layers)
        self.scales = {layer: (1 - depth) * scale + depth * last for layer, depth in depths.items()}
        # The streams differ in their wrapped layers, so they cannot run as one batch.
        self.batch_both = False

    def hidden_states(self, inputs: dict[str, torch.Tensor], *, stream: str, cache: Cache | None) -> torch.Tensor:
        """Return hidden states (B, T, D) of the original stream, or of the scaled tuned stream."""
        if stream == "original":
            return super().hidden_states(inputs, stream=stream, cache=cache)
        with self.adapter_layers.wrapped(self._scaled_forward):
            return super().hidden_states(inputs, stream=stream, cache=cache)

    def _scaled_forward(self, layer: nn.Module, disable: Disable, forward: Forward) -> Forward:
        def scaled(*arguments: Any, **named: Any) -> Any:
            # The layer's input is the scaled stream's; only this layer's adapter is disabled.
            with disable():
                original = forward(*arguments, **named)
            return _lerp(original, forward(*arguments, **named), self.scales[layer])

        return scaled


def relative_depths(model: Any, layers: Iterable[nn.Module]) -> dict[nn.Module, float]:
    """Return (l - 1) / (L - 1) of each layer in block l of L; 0 outside of the blocks, and if there is one block.

    ``model`` is a PEFT model, or a backbone, with its configuration.
    """
    names = {module: name for name, module in model.named_modules()}
    # the index in the list of blocks is the first number of a module's name: model.layers.3.mlp.down_proj
    blocks = {layer: next((int(part) for part in names[layer].split(".") if part.isdigit()), 0) for layer in layers}
    last = int(model.config.get_text_config(decoder=True).num_hidden_layers) - 1
    return {layer: block / max(last, 1) for layer, block in blocks.items()}


def build_scaled_model(
    model: SiameseForCausalLM, scale: float, last: float | None = None, *, baseline: str = "adapter_scale"
) -> SiameseForCausalLM:
    """Build a model on the same weights whose tuned stream scales the adapter.

    Scale 0 is the original, 1 the trained model, bit for bit; values above 1 extrapolate. ``last`` is the scale of
    the last block, between which and ``scale`` it is linear in the depth; None: ``scale``. ``baseline`` begins error
    messages.

    Raises:
        UserError: The adapter cannot be scaled: it changes no weights, or the scales 0 and 1 do not
            reproduce the original and the tuned model.
    """
    config = getattr(model.adapted, "active_peft_config", None)
    method = "none" if config is None else str(config.peft_type.value)
    virtual = model.streams.virtual_tokens
    if virtual is not None:
        raise UserError(
            f"{baseline}: {method} adds {virtual.count} virtual tokens and changes no weights, so W0 + a (W - W0) "
            f"is undefined; leave {baseline} out"
        )
    if not model.streams.has_adapter:
        raise UserError(f"{baseline}: the model has no adapter; give a run of method=peft or method=imsm")
    scaled = _with_scale(model, scale, scale if last is None else last)
    _check_ends(model, method, baseline)
    return scaled


def _with_scale(model: SiameseForCausalLM, scale: float, last: float) -> SiameseForCausalLM:
    scaled = derive_model(model, SiameseForCausalLM, stream="tuned", gate=None)
    scaled.streams = ScaledAdapterStreams(model.adapted, model.streams.decoder, scale=scale, last=last)
    return scaled


@torch.no_grad()
def _check_ends(model: SiameseForCausalLM, method: str, baseline: str) -> None:
    """Check that 0 is the original and 1 the tuned model, bit for bit, with and without a cache."""
    # From the middle of the vocabulary, because special tokens are mostly at its ends.
    vocabulary = model.backbone.config.get_text_config(decoder=True).vocab_size
    tokens = ((vocabulary // 3 + 17 * torch.arange(12, device=model.device)) % vocabulary).view(2, 6)
    for scale, stream in ((0.0, "original"), (1.0, "tuned")):
        expected = _hidden_states(model.streams, tokens, stream=stream)
        try:
            actual = _hidden_states(_with_scale(model, scale, scale).streams, tokens, stream="tuned")
            equal = all(map(torch.equal, expected, actual))
        except _FAILURES as error:
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"{baseline}: {method} cannot be scaled layer by layer ({type(error).__name__}: {first_line}); "
                f"leave {baseline} out"
            ) from error
        if not equal:
            raise UserError(
                f"{baseline}: {method} at scale {scale:g} is not the {stream} model, so other scales are not "
                f"between the two; leave {baseline} out"
            )


def _hidden_states(streams: StreamRunner, tokens: torch.Tensor, *, stream: str) -> list[torch.Tensor]:
    """Return the hidden states of a sequence in one pass, and in two chunks with a cache."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    inputs = {"input_ids": tokens, "position_ids": positions}
    results = [streams.hidden_states(inputs, stream=stream, cache=None)]
    cache = DynamicCache()
    for chunk in (slice(0, 4), slice(4, None)):
        part = {key: value[:, chunk] for key, value in inputs.items()}
        results.append(streams.hidden_states(part, stream=stream, cache=cache))
    return results


def _lerp(original: Any, tuned: Any, scale: float) -> Any:
    if isinstance(original, tuple):
        return tuple(map(partial(_lerp, scale=scale), original, tuned))
    # lerp is exact at 0 and 1, unlike original + scale * (tuned - original).
    return original if original is None else torch.lerp(original, tuned, scale)
