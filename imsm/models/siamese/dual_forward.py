"""Run an adapted model as the original, as the tuned model, or as both in one batch.

All patching of third-party layers is in this file. `AdapterLayers` finds the tuner layers of a
model once and can disable them, or make them accept a batch whose first half runs as the original
model and whose second half runs as the tuned one.

In such a batch a tuner layer would read its base weight twice, once per half. Most methods (LoRA and its relatives,
DoRA, VeRA, (IA)^3 in attention) pass their input unchanged to the base layer. For these the base layer runs once on
all rows, and the tuner layer receives the second half of that output when it calls its base layer with its own input.
The check is by object identity, so it holds for any method: a layer that calls its base layer with another tensor gets
a computed result and runs half by half from then on. `imsm.models.siamese.adapter_check` compares both ways before
first use.

Shapes: B rows per stream; a dual batch has 2B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

Forward = Callable[..., Any]
Disable = Callable[[], AbstractContextManager[None]]

_MISSING = object()
_LARGE = 2**17
"""Elements of a weight from which `_two_row_linear` saves more than a call in Python takes."""
# Set directly: `BaseTunerLayer.enable_adapters(True)` would also make frozen adapters trainable.
_SWITCH = "_disable_adapters"
# PEFT has no common base class: modules_to_save and trainable tokens are wrappers, not tuner layers.
_TUNER_LAYERS = BaseTunerLayer | AuxiliaryTrainingWrapper
# Adaption prompt replaces complete attention modules and has no switch.
_ADAPTED_ATTENTION = AdaptedAttention | AdaptedAttentionGPT


class _Attributes(AbstractContextManager[None]):
    """Set an attribute of some modules inside this block; other blocks may nest.

    The attributes are set in the modules' ``__dict__``: at every generated token all tuner layers are patched, and
    `nn.Module.__setattr__` and a context manager per layer would take longer than some of the layers.
    """

    def __init__(self, name: str, values: Iterable[tuple[nn.Module, Any]]) -> None:
        self._name, self._values = name, values
        self._before: list[tuple[dict[str, Any], Any]] = []

    def __enter__(self) -> None:
        name = self._name
        for module, value in self._values:
            attributes = module.__dict__
            self._before.append((attributes, attributes.get(name, _MISSING)))
            attributes[name] = value

    def __exit__(self, *_: object) -> None:
        name, before = self._name, self._before
        while before:
            attributes, value = before.pop()
            if value is _MISSING:
                del attributes[name]
            else:  # accelerate's hooks also patch the instance
                attributes[name] = value


def patched_forward(module: nn.Module, forward: Forward) -> AbstractContextManager[None]:
    """Replace ``module.forward`` by ``forward`` inside this block."""
    return _Attributes("forward", [(module, forward)])


class AdapterLayers:
    """The outermost tuner layers of a model.

    Attributes:
        layers: the outermost tuner layers.
        supports_dual: whether `dual` can be used; not for methods that replace attention modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = _outermost_tuner_layers(model)
        self._disable_outside: dict[nn.Module, Disable] = {}
        self.supports_dual = not any(isinstance(layer, _ADAPTED_ATTENTION) for layer in self.layers)
        self._disable = {layer: _disable_fn([layer]) for layer in self.layers}
        self._disable_all = _disable_fn(self.layers)
        self._dual_layers = [DualStreamLayer(layer, disable=fn) for layer, fn in self._disable.items()]
        inside = {m for layer in self.layers for m in layer.modules() if m is not getattr(layer, "base_layer", None)}
        self._linears = [
            m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() >= _LARGE and m not in inside
        ]

    def disabled(self, *, outside: nn.Module | None = None) -> AbstractContextManager[None]:
        """Run every tuner layer as the layer that it wraps; with ``outside`` only those outside that module."""
        # PeftModel.disable_adapter() walks all modules and makes frozen adapters trainable on exit
        if outside is None:
            return self._disable_all()
        if outside not in self._disable_outside:
            inside = set(outside.modules())
            self._disable_outside[outside] = _disable_fn([layer for layer in self.layers if layer not in inside])
        return self._disable_outside[outside]()

    def dual(self) -> AbstractContextManager[None]:
        """Accept batches of 2B rows: the first half original, the second half tuned."""
        forwards: list[tuple[nn.Module, Forward]] = [(each.layer, each.forward_fn()) for each in self._dual_layers]
        if self._linears and self._linears[0].weight.device.type == "cpu" and not torch.is_grad_enabled():
            # accelerate's hooks also patch the instance
            plain = [linear for linear in self._linears if "forward" not in linear.__dict__]
            forwards += [(linear, partial(_two_row_linear, linear)) for linear in plain]
        return _Attributes("forward", forwards)

    def wrapped(self, wrap: Callable[[nn.Module, Disable, Forward], Forward]) -> AbstractContextManager[None]:
        """Replace each layer's forward by ``wrap(layer, disable, forward)``.

        Inside a ``with disable():`` block, ``forward`` is that of the wrapped layer.
        """
        return _Attributes(
            "forward", [(layer, wrap(layer, disable, layer.forward)) for layer, disable in self._disable.items()]
        )

    def disable_sharing(self) -> None:
        """Run each half of a dual batch separately through every tuner layer."""
        for layer in self._dual_layers:
            layer.shares_base = False

    def copy_sharing(self, other: AdapterLayers) -> None:
        """Share base layers where ``other``, a view of the same layers, does."""
        for layer, known in zip(self._dual_layers, other._dual_layers, strict=True):
            layer.shares_base = known.shares_base


def _two_row_linear(linear: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """Run a linear layer, two float32 rows as W x^T: torch's x W^T takes a CPU up to three times as long for them."""
    if rows.numel() != 2 * rows.shape[-1] or rows.dtype != torch.float32:
        return nn.Linear.forward(linear, rows)
    products = (linear.weight @ rows.reshape(2, -1).t()).t().contiguous()
    if linear.bias is not None:
        products += linear.bias
    return products.view(*rows.shape[:-1], -1)


class DualStreamLayer:
    """The forward of one tuner layer on a dual batch.

    Attributes:
        shares_base: whether the base layer processes both halves in one call.
    """

    def __init__(self, layer: nn.Module, *, disable: Disable) -> None:
        self.layer, self._disable = layer, disable
        base = getattr(layer, "base_layer", None)
        # a tuner layer nested in the base layer is switched together with this one
        plain = isinstance(base, nn.Module) and not any(hasattr(m, _SWITCH) for m in base.modules())
        self._base = base if plain else None
        self.shares_base = self._base is not None
        self._lora = _plain_lora(layer)

    def forward_fn(self) -> Forward:
        """Return a forward of the layer for 2B rows."""
        return partial(self._forward, self.layer.forward)

    def _forward(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        # a merged base weight is not the original's
        if self.shares_base and len(args) == 1 and not kwargs and not getattr(self.layer, "merged", False):
            return self._forward_shared(forward, args[0])
        return self._forward_halves(forward, *args, **kwargs)

    def _forward_shared(self, forward: Forward, rows: torch.Tensor) -> Any:
        """Run (2B, ...) rows with one call of the base layer."""
        assert self._base is not None
        base_forward = self._base.forward
        tuned_rows = rows.chunk(2)[1]
        output = self._base(rows)
        # a router returns a tuple
        if not isinstance(output, torch.Tensor):
            self.shares_base = False
            return self._forward_halves(forward, rows)
        middle = len(output) // 2
        # a view: AdaLoRA adds to it in place
        tuned_base_output = output[middle:]
        # an identity or an eval-mode dropout returns its input, which the residual still reads
        owns_storage = output.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
        in_place = owns_storage and not torch.is_grad_enabled()
        lora = self._lora if in_place else None
        if lora is not None and _try_add_lora_inplace(self.layer, lora, tuned_base_output, tuned_rows):
            return output
        calls = 0

        def computed_base_output(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if len(args) == 1 and not kwargs and args[0] is tuned_rows:
                calls += 1
                # the first result may have been changed in place, so a second call is computed
                return tuned_base_output if calls == 1 else base_forward(tuned_rows)
            return base_forward(*args, **kwargs)

        with patched_forward(self._base, computed_base_output):
            tuned = forward(tuned_rows)
        self.shares_base = calls > 0
        if not (in_place and tuned.shape == tuned_base_output.shape and tuned.dtype == tuned_base_output.dtype):
            return torch.cat([output[:middle], tuned])
        # in place of torch.cat: saves one (2B, ...) allocation
        tuned_base_output.copy_(tuned)
        return output

    def _forward_halves(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the halves separately, on (2B, ...) or flattened (2BT, ...) rows.

        With a single argument each half runs once. Routers and experts take more arguments, and it is unknown which of
        them are indexed by row: all rows run twice, and each half is taken from the pass of its stream.
        """
        if len(args) == 1 and not kwargs:
            original_rows, tuned_rows = args[0].chunk(2)
            with self._disable():
                original = forward(original_rows)
            return _map_outputs(lambda a, b: torch.cat([a, b]), original, forward(tuned_rows))
        with self._disable():
            original = forward(*args, **kwargs)
        return _map_outputs(lambda a, b: torch.cat([a.chunk(2)[0], b.chunk(2)[1]]), original, forward(*args, **kwargs))


def _map_outputs(join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], original: Any, tuned: Any) -> Any:
    """Join two outputs of a layer: tensors, or tuples of them."""
    if isinstance(original, tuple):
        return tuple(_map_outputs(join, *pair) for pair in zip(original, tuned, strict=True))
    return join(original, tuned)


class _PlainLora(NamedTuple):
    """The parts of one plain LoRA on a linear layer, looked up once: `nn.Module.__getattr__` is slow."""

    name: str
    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module


def _plain_lora(layer: Any) -> _PlainLora | None:
    """Return the LoRA of ``layer``; None for anything but one plain LoRA on a linear layer."""
    # the exact type: subclasses (quantized layers) compute something else
    if type(layer) is not Linear or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    # `lora_variant`: DoRA and others
    if name not in layer.lora_A or name in layer.lora_variant:
        return None
    down, up = layer.lora_A[name], layer.lora_B[name]
    if not (type(down) is nn.Linear and type(up) is nn.Linear and up.bias is None):
        return None
    return _PlainLora(name, down, up, layer.lora_dropout[name])


def _try_add_lora_inplace(layer: Any, lora: _PlainLora, output: torch.Tensor, rows: torch.Tensor) -> bool:
    """Add the update ``lora`` of ``rows`` (..., D_in) to the base layer's output (..., D_out).

    Return False, with ``output`` unchanged, if the layer is switched off or its state forbids it.
    """
    if layer.disable_adapters or layer.merged:
        return False
    no_dropout = isinstance(lora.dropout, nn.Identity) or not lora.dropout.training
    # DeepSpeed ZeRO-3 may hold only a shard of the weight outside the layer's own forward
    up = lora.up.weight
    gathered = len(up) == output.shape[-1]
    if not (no_dropout and gathered and output.is_contiguous()):
        return False
    features = lora.down(rows.to(lora.down.weight.dtype))  # (..., r)
    scaling = layer.scaling[lora.name]
    if up.dtype == output.dtype:
        flat = output.view(-1, output.shape[-1])
        flat.addmm_(features.reshape(-1, features.shape[-1]), up.t(), alpha=scaling)
    else:  # add in float32 and round once, as PEFT does
        output.add_(lora.up(features), alpha=scaling)
    return True


def _outermost_tuner_layers(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    nested: set[int] = set()
    for module in model.modules():
        if isinstance(module, _TUNER_LAYERS | _ADAPTED_ATTENTION) and id(module) not in nested:
            found.append(module)
            nested.update(id(child) for child in module.modules())
    return found


def _disable_fn(layers: Sequence[nn.Module]) -> Disable:
    """Return a factory of context managers inside which each outermost tuner layer equals its base layer."""
    attentions = [layer for layer in layers if isinstance(layer, _ADAPTED_ATTENTION)]
    # nested switches: experts have one tuner layer per weight, trained tokens one in a wrapper
    switches = [
        (module, True)
        for layer in layers
        if not isinstance(layer, _ADAPTED_ATTENTION)
        for module in layer.modules()
        if hasattr(module, _SWITCH)
    ]
    if not attentions:
        return partial(_Attributes, _SWITCH, switches)
    return partial(_attentions_disabled, attentions, switches)


@contextmanager
def _attentions_disabled(attentions: Sequence[Any], switches: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    # `layer.model` is the wrapped attention module
    originals = [(layer, layer.model.forward) for layer in attentions]
    with _Attributes(_SWITCH, switches), _Attributes("forward", originals):
        yield
