"""Check on the actual model, with a few short forward passes, that an adapter can be interwoven.

Three properties must hold for any method:

1. With the adapter disabled the model is the original, bit for bit, and its weights are unchanged.
2. With the adapter enabled the hidden states are those of the method's own forward pass.
3. A batch of both streams gives the hidden states of two passes. If it does not, adapted layers
   process each half of the batch separately, and if that does not help, decoding runs two passes.

A new adapter changes nothing, so a wrong stream would look right. Its values are therefore
perturbed during the check and restored bit for bit.

Legend: B batch, T positions, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from imsm.models.backbones.decoder import find_decoder
from imsm.models.backbones.sharded import local_part
from imsm.models.siamese.kv_cache import DualStreamCache
from imsm.models.siamese.streams import StreamRunner
from imsm.utils.errors import UserError, first_line

_ROWS, _LENGTH, _PREFILL = 2, 6, 4
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 1e-2}
"""Maximum relative error of hidden states by dtype; bfloat16: 5e-2, for rounding in tens of layers."""
_SCALES = (0.05, 0.3, 1.0)
"""Perturbations to try; the first that changes the hidden states measurably is used."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class StreamModel(Protocol):
    """The members of `SiameseForCausalLM` that the check uses; its module imports this one."""

    config: Any
    adapted: nn.Module
    streams: StreamRunner
    training: bool
    head: Callable[[torch.Tensor], torch.Tensor]
    eval: Callable[[], Any]
    train: Callable[[bool], Any]

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model, including the adapter's layers."""

    @property
    def device(self) -> torch.device:
        """The model's device."""


@dataclass(frozen=True)
class BackboneSnapshot:
    """A backbone before an adapter is attached.

    Attributes:
        tokens: test input, (B, T).
        hidden_states: of ``tokens``, (B, T, D).
        checksums: of all weights.
        weights: the parameters themselves.
    """

    tokens: torch.Tensor
    hidden_states: torch.Tensor
    checksums: set[tuple[Any, ...]]
    weights: list[nn.Parameter]


@torch.no_grad()
def snapshot(backbone: PreTrainedModel, config: Any = None) -> BackboneSnapshot:
    """Record the hidden states and weights of a backbone.

    Args:
        backbone: a causal language model without an adapter, in eval mode.
        config: configuration of the adapter to be attached; the test input contains the tokens
            that it trains.
    """
    vocab_size = backbone.config.get_text_config(decoder=True).vocab_size
    steps = torch.arange(_ROWS * _LENGTH, device=backbone.device)
    tokens = (vocab_size // 3 + 17 * steps) % vocab_size
    trained = getattr(config, "token_indices", None) or getattr(config, "trainable_token_indices", None)
    for index, token in enumerate((trained if isinstance(trained, list) else [])[: len(tokens)]):
        tokens[index] = token
    tokens = tokens.view(_ROWS, _LENGTH)
    hidden_states = find_decoder(backbone)(**_inputs(tokens), use_cache=False).last_hidden_state
    return BackboneSnapshot(tokens, hidden_states, _checksums(backbone), list(backbone.parameters()))


@torch.no_grad()
def check_adapter(model: StreamModel, before: BackboneSnapshot) -> None:
    """Check the adapter of ``model`` and select how its streams are batched.

    Sets ``model.streams.batch_both`` and how adapted layers process a batch of both streams. The
    model, its training mode and the random state are left unchanged.

    Args:
        model: a newly built model.
        before: snapshot of its backbone.

    Raises:
        UserError: the original stream is not the original model, or the adapter does not run as
            its method defines.
    """
    mode = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    name = _name(model)
    _reject_outside_decoder(model, name)
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            _check_streams(model, before, name)
    except _FAILURES as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"peft: {name} cannot be run in a siamese model ({reason})") from error
    finally:
        model.train(mode)
    if before.checksums - _checksums(model.adapted):
        raise UserError(
            f"peft: {name} overwrites the backbone's weights, so disabling the adapter would not restore the "
            "original model; choose another method or initialization"
        )


def _check_streams(model: StreamModel, before: BackboneSnapshot, name: str) -> None:
    """Run the three checks with a perturbed adapter."""
    streams, inputs = model.streams, _inputs(before.tokens)
    tolerance = _TOLERANCE.get(before.hidden_states.dtype, 5e-2)
    for scale in _SCALES:
        with _perturbed(model, before, scale=scale):
            for training in (True, False):
                model.train(training)
                original = streams.hidden_states(inputs, stream="original", cache=None)
                if not torch.equal(original, before.hidden_states):
                    raise UserError(
                        f"peft: {name} changes the model even with the adapter disabled, so the original stream "
                        "would not be the original model; choose another method"
                    )
            tuned = streams.hidden_states(inputs, stream="tuned", cache=None)
            if not _relative_error(tuned, original) > 10 * tolerance:
                continue
            first = slice(0, _PREFILL)
            alone = streams.hidden_states(_inputs(before.tokens, first), stream="tuned", cache=None)
            if not _relative_error(tuned[:, first], alone) <= tolerance:
                raise UserError(f"peft: {name} is not causal: later tokens change earlier hidden states")
            _check_own_pass(model, before.tokens, tuned, tolerance=tolerance, name=name)
            if streams.batch_both and not _dual_stream_matches(model, before.tokens, original, tuned, tolerance):
                streams.adapter_layers.disable_sharing()
                streams.batch_both = _dual_stream_matches(model, before.tokens, original, tuned, tolerance)
            if not (streams.batch_both or _dual_stream_matches(model, before.tokens, original, tuned, tolerance)):
                raise UserError(
                    f"peft: {name} gives different hidden states with a KV cache than in a single pass, so "
                    "generation would not match training"
                )
            return
    raise UserError(f"peft: {name} changes no hidden state of the backbone, whatever its values")


def _check_own_pass(
    model: StreamModel, tokens: torch.Tensor, tuned: torch.Tensor, *, tolerance: float, name: str
) -> None:
    """Compare the tuned stream with the method's own forward pass, including code outside the decoder."""
    own = model.adapted(input_ids=tokens).logits[:, -tokens.shape[1] :]
    if not _relative_error(model.head(tuned), own) <= tolerance:
        raise UserError(
            f"peft: {name} computes something outside the decoder, which the siamese model skips, so its tuned "
            "stream would not be what PEFT computes"
        )


def _dual_stream_matches(
    model: StreamModel, tokens: torch.Tensor, original: torch.Tensor, tuned: torch.Tensor, tolerance: float
) -> bool:
    """Whether decoding both streams, as ``model.streams.batch_both`` selects, equals two passes."""
    text_config = model.config.get_text_config(decoder=True)
    batch_both = model.streams.batch_both
    cache = DualStreamCache(config=text_config, batch_both=batch_both) if model.config.supports_cache else None
    chunks = [slice(0, _PREFILL), slice(_PREFILL, _LENGTH)] if cache else [slice(0, _LENGTH)]
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for chunk in chunks:
            outputs.append(model.streams.both_hidden_states(_inputs(tokens, chunk), cache=cache))
    except _FAILURES:
        if batch_both:
            return False  # a layer that cannot process the halves separately
        raise
    both = [torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)]
    pairs = zip(both, (original, tuned), strict=True)
    return all(_relative_error(one, other) <= tolerance for one, other in pairs)


def _reject_outside_decoder(model: StreamModel, name: str) -> None:
    """Reject adapted layers outside the decoder: both streams share the original LM head (eq. 7)."""
    inside = {id(module) for module in model.streams.decoder.modules()}
    outside = {id(layer) for layer in model.streams.layers if id(layer) not in inside}
    for path, module in model.backbone.named_modules():
        if id(module) in outside:
            raise UserError(
                f"peft: {name} adapts {path}, which is outside the decoder: both streams share the original LM head "
                "(eq. 7), so it would not be trained; exclude it from the adapter"
            )


@contextmanager
def _perturbed(model: StreamModel, before: BackboneSnapshot, *, scale: float) -> Iterator[None]:
    """Add noise to the adapter's values; restore them bit for bit on exit."""
    backbone = {id(weight) for weight in before.weights}
    added = [p for p in model.adapted.parameters() if id(p) not in backbone and p.is_floating_point()]
    parameters = [p for p in added if p.requires_grad] or added
    values = [p.clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(scale * noise.to(parameter))
    try:
        yield
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _inputs(tokens: torch.Tensor, chunk: slice = slice(0, _LENGTH)) -> dict[str, torch.Tensor]:
    """Decoder inputs for a chunk of ``tokens`` (B, T), with the attention mask up to its end."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    return {
        "input_ids": tokens[:, chunk],
        "attention_mask": torch.ones_like(tokens[:, : chunk.stop]),
        "position_ids": positions[:, chunk],
    }


def _relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative distance between (B, T, D) tensors: the maximum over positions in float32.

    In half precision it is the mean, because a mixture of experts may route single tokens differently.
    """
    distance = (one.float() - other.float()).norm(dim=-1)
    relative = distance / other.float().norm(dim=-1).clamp(min=1e-9)
    return float(relative.max() if one.dtype == torch.float32 else relative.mean())


def _checksums(model: nn.Module) -> set[tuple[Any, ...]]:
    """Shape, dtype and bit checksum of every tensor of a model, of a sharded one of this process's part."""
    parts = map(local_part, model.state_dict().values())
    return {(part.shape, part.dtype, int(_bits(part).sum(dtype=torch.int64))) for part in parts}


def _bits(value: torch.Tensor) -> torch.Tensor:
    """View a tensor as integers of the largest fitting size, which are summed fastest."""
    flat = value.detach().contiguous().reshape(-1)
    size = flat.numel() * flat.element_size()
    return flat.view(torch.int64 if size % 8 == 0 else _INTEGERS[flat.element_size()])


def _name(model: StreamModel) -> str:
    """Name of the adapter method."""
    config = getattr(model.adapted, "active_peft_config", None)
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", None) or type(model.adapted).__name__)
