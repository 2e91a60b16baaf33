"""Is an adapter what IMSM takes it for? Found out on the actual model, in some short passes.

Three things must hold, whatever method it is:

1. with the adapter off the model is the original, bit for bit, and its weights are untouched;
2. with the adapter on its memories are those of the method's own pass;
3. a batch of both streams gives what two passes give. Where it does not, the adapted layers read
   their weights once for each half, and where that does not help, decoding takes two passes.

At its initial value an adapter changes nothing, so a wrong stream would look right: its values are
moved for the probe and put back, bit for bit.

Legend: B rows, T positions, D width of a memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from imsm.models.siamese.decoder import find_decoder
from imsm.models.siamese.kv_cache import DualStreamCache
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from imsm.models.siamese.model import SiameseForCausalLM

_ROWS, _LENGTH, _PREFILL = 2, 6, 4
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 1e-2}
"""How far two memories may be off, relatively; of bfloat16 5e-2: tens of layers of rounding."""
_SCALES = (0.05, 0.3, 1.0)
"""How far an adapter's values are moved; the first that shows in the memories is taken."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class BackboneSnapshot:
    """A backbone before an adapter is put on it.

    ``tokens`` (B, T) were read as ``memory`` (B, T, D); ``sums`` are the checksums of its weights,
    which are ``weights``.
    """

    tokens: torch.Tensor
    memory: torch.Tensor
    sums: set[tuple[Any, ...]]
    weights: list[nn.Parameter]


@torch.no_grad()
def snapshot(backbone: PreTrainedModel, config: Any = None) -> BackboneSnapshot:
    """What a backbone is and does before ``config``'s adapter is put on it.

    Args:
        backbone: a causal language model without an adapter, in evaluation mode.
        config: the adapter's configuration; tokens that it trains are among those that are read.
    """
    words = backbone.config.get_text_config(decoder=True).vocab_size
    steps = torch.arange(_ROWS * _LENGTH, device=backbone.device)
    tokens = (words // 3 + 17 * steps) % words
    named = getattr(config, "token_indices", None) or getattr(config, "trainable_token_indices", None)
    for place, token in enumerate((named if isinstance(named, list) else [])[: len(tokens)]):
        tokens[place] = token
    tokens = tokens.view(_ROWS, _LENGTH)
    memory = find_decoder(backbone)(**_inputs(tokens), use_cache=False).last_hidden_state
    return BackboneSnapshot(tokens, memory, _checksums(backbone), list(backbone.parameters()))


@torch.no_grad()
def check_adapter(model: SiameseForCausalLM, before: BackboneSnapshot) -> None:
    """Check the adapter of ``model``; decide whether its streams may run as one batch.

    Sets ``model.streams.doubled``, and how adapted layers read a doubled batch. The model, its mode
    and the random state are left as they were.

    Args:
        model: just put together.
        before: its backbone's footprint.

    Raises:
        UserError: the original stream is not the original model, or the adapter cannot be run as
            its method runs it.
    """
    mode = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    name = _name(model)
    _refuse_outside(model, name)
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            _check_streams(model, before, name)
    except _FAILURES as error:
        if isinstance(error, UserError):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"peft: {name} cannot be run inside IMSM ({type(error).__name__}: {first})") from error
    finally:
        model.train(mode)
    if before.sums - _checksums(model):
        raise UserError(
            f"peft: {name} overwrites the backbone's weights: with its adapter off the model would "
            "not be the original. Choose another method or initialisation"
        )


def _check_streams(model: SiameseForCausalLM, before: BackboneSnapshot, name: str) -> None:
    """The three checks, adapter moved."""
    streams, inputs = model.streams, _inputs(before.tokens)
    tolerance = _TOLERANCE.get(before.memory.dtype, 5e-2)
    for scale in _SCALES:
        with _perturbed(model, before, scale=scale):
            for training in (True, False):
                model.train(training)
                original = streams.hidden_states(inputs, stream="original", cache=None)
                if not torch.equal(original, before.memory):
                    raise UserError(
                        f"peft: {name} changes the model even with its adapter off: the original "
                        "stream would not be the original model. Choose another method"
                    )
            tuned = streams.hidden_states(inputs, stream="tuned", cache=None)
            if not _relative_error(tuned, original) > 10 * tolerance:
                continue
            first = slice(0, _PREFILL)
            alone = streams.hidden_states(_inputs(before.tokens, first), stream="tuned", cache=None)
            if not _relative_error(tuned[:, first], alone) <= tolerance:
                raise UserError(f"peft: {name} lets later tokens change earlier memories: it is no causal model")
            _check_own_pass(model, before.tokens, tuned, tolerance=tolerance, name=name)
            if streams.batch_both and not _dual_stream_matches(model, before.tokens, original, tuned, tolerance):
                streams.disable_sharing()
                streams.batch_both = _dual_stream_matches(model, before.tokens, original, tuned, tolerance)
            if not (streams.batch_both or _dual_stream_matches(model, before.tokens, original, tuned, tolerance)):
                raise UserError(
                    f"peft: {name} gives other memories piece by piece, over a cache, than at "
                    "once: texts could not be generated as they were learned"
                )
            return
    raise UserError(f"peft: {name} changes no memory of the backbone, whatever its values")


def _check_own_pass(
    model: SiameseForCausalLM, tokens: torch.Tensor, tuned: torch.Tensor, *, tolerance: float, name: str
) -> None:
    """The method's own forward, with whatever it does around the body, must give the same."""
    own = model.adapted(input_ids=tokens).logits[:, -tokens.shape[1] :]
    if not _relative_error(model.head(tuned), own) <= tolerance:
        raise UserError(
            f"peft: {name} does something outside the body that makes memories, which IMSM would "
            "leave out: its tuned stream would not be what PEFT computes"
        )


def _dual_stream_matches(
    model: SiameseForCausalLM, tokens: torch.Tensor, original: torch.Tensor, tuned: torch.Tensor, tolerance: float
) -> bool:
    """Whether decoding, as ``model.streams.doubled`` says, gives the memories of two passes."""
    text_config = model.config.get_text_config(decoder=True)
    doubled = model.streams.batch_both
    cache = DualStreamCache(config=text_config, batch_both=doubled) if model.config.cached else None
    pieces = [slice(0, _PREFILL), slice(_PREFILL, _LENGTH)] if cache else [slice(0, _LENGTH)]
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for piece in pieces:
            found.append(model.streams.both_hidden_states(_inputs(tokens, piece), cache=cache))
    except _FAILURES:
        if doubled:
            return False  # a layer that cannot be run half by half
        raise
    both = [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]
    pairs = zip(both, (original, tuned), strict=True)
    return all(_relative_error(one, other) <= tolerance for one, other in pairs)


def _refuse_outside(model: SiameseForCausalLM, name: str) -> None:
    """Both streams share the original's head (eq. 7): an adapter there would do nothing."""
    inside = {id(module) for module in model.streams.decoder.modules()}
    outside = {id(layer) for layer in model.streams.layers if id(layer) not in inside}
    for place, module in model.backbone.named_modules():
        if id(module) in outside:
            raise UserError(
                f"peft: {name} adapts {place}, which makes no memories: both streams share the "
                "original's head (eq. 7), so it would learn nothing. Leave it out of the adapter"
            )


@contextmanager
def _perturbed(model: SiameseForCausalLM, before: BackboneSnapshot, *, scale: float) -> Iterator[None]:
    """The adapter's values moved at random; put back bit for bit."""
    backbone = {id(weight) for weight in before.weights}
    own = [p for p in model.adapted.parameters() if id(p) not in backbone]
    own = [p for p in own if p.is_floating_point()]
    learned = [p for p in own if p.requires_grad] or own
    kept = [p.clone() for p in learned]
    generator = torch.Generator().manual_seed(0)
    for parameter in learned:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(scale * noise.to(parameter))
    try:
        yield
    finally:
        for parameter, value in zip(learned, kept, strict=True):
            parameter.copy_(value)


def _inputs(tokens: torch.Tensor, piece: slice = slice(0, _LENGTH)) -> dict[str, torch.Tensor]:
    """What a body is fed of ``tokens`` (B, T): a piece, with the mask up to its end."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    return {
        "input_ids": tokens[:, piece],
        "attention_mask": torch.ones_like(tokens[:, : piece.stop]),
        "position_ids": positions[:, piece],
    }


def _relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far ``one`` is from ``other`` (B, T, D), relatively: the worst position in float32.

    In half precision the mean: a mixture of experts may send a single token elsewhere.
    """
    distance = (one.float() - other.float()).norm(dim=-1)
    relative = distance / other.float().norm(dim=-1).clamp(min=1e-9)
    return float(relative.max() if one.dtype == torch.float32 else relative.mean())


def _checksums(model: nn.Module) -> set[tuple[Any, ...]]:
    """Shape, type and sum of the bits of every tensor of a model."""
    return {
        (value.shape, value.dtype, int(_bits(value).sum(dtype=torch.int64))) for value in model.state_dict().values()
    }


def _bits(value: torch.Tensor) -> torch.Tensor:
    """A tensor as whole numbers, the longest that it divides into: they are added fastest."""
    flat = value.detach().contiguous().reshape(-1)
    size = flat.numel() * flat.element_size()
    return flat.view(torch.int64 if size % 8 == 0 else _INTEGERS[flat.element_size()])


def _name(model: SiameseForCausalLM) -> str:
    """The method, as PEFT or its own configuration calls it."""
    config = getattr(model.adapted, "active_peft_config", None)
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", None) or type(model.adapted).__name__)
