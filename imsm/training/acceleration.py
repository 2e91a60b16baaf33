"""Faster training steps that change bits: compiled layers, fused kernels, adapter products in half precision.

They apply to training steps alone. Passes of an evaluation during training run without compiled layers, and the model
is restored afterwards, so that responses stay those of the saved model in the libraries' own code.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn import functional
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from imsm.models.backbones.decoder import decoder_layers
from imsm.models.siamese.dual_forward import patched_forward
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.packed_sequences import check_packing, packed_sdpa
from imsm.utils.errors import UserError

_LIGER = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""Left out: rotary embeddings are replaced for all models of the process, and the loss is this package's own."""

_MISSING = object()


@contextmanager
def accelerated(
    model: SiameseForCausalLM,
    *,
    packing: bool = False,
    compile_layers: bool = False,
    liger_kernel: bool = False,
    adapter_precision: str = "float32",
) -> Iterator[None]:
    """Apply the options of the section ``trainer`` of the same names inside this block.

    Raises:
        UserError: An option does not fit the model or the machine.
    """
    with ExitStack() as stack:
        if packing:
            stack.enter_context(packed_sdpa(model.backbone))
            check_packing(model.streams, vocab_size=model.config.vocab_size, device=model.device)
        if liger_kernel:
            stack.enter_context(_liger_kernels(model))
        if adapter_precision == "backbone":
            stack.enter_context(_adapter_in_backbone_precision(model))
        if compile_layers:
            stack.enter_context(compiled_layers(model))
        yield


@contextmanager
def compiled_layers(model: SiameseForCausalLM, *, backend: str = "inductor") -> Iterator[None]:
    """Compile the forward of each decoder layer (`torch.compile`), for passes in training mode."""
    layers = decoder_layers(model.backbone)
    with ExitStack() as stack:
        for layer in layers:
            compiled = torch.compile(layer.forward, dynamic=True, backend=backend)
            stack.enter_context(patched_forward(layer, _in_training(layer, compiled, layer.forward)))
        yield


@contextmanager
def _liger_kernels(model: SiameseForCausalLM) -> Iterator[None]:
    """Run RMSNorm and gated MLPs as Liger's fused Triton kernels."""
    if not is_liger_kernel_available():
        raise UserError(
            "trainer.liger_kernel=true: liger-kernel is not installed; pip install 'imsm[liger]', or omit it"
        )
    if model.device.type != "cuda":
        raise UserError("trainer.liger_kernel=true: its Triton kernels need a GPU; omit it")
    library: Any = sys.modules[type(model.backbone).__module__]
    places = [vars(library), *(module.__dict__ for module in model.backbone.modules())]
    before = [dict(place) for place in places]
    apply_liger_kernel(model.backbone, _LIGER)
    changed = [
        (place, name, values.get(name, _MISSING))
        for place, values in zip(places, before, strict=True)
        for name, value in place.items()
        if values.get(name, _MISSING) is not value
    ]
    try:
        yield
    finally:
        for place, name, value in changed:
            if value is _MISSING:
                del place[name]
            else:
                place[name] = value


@contextmanager
def _adapter_in_backbone_precision(model: SiameseForCausalLM) -> Iterator[None]:
    """Multiply by LoRA's matrices in the backbone's dtype; they are kept, and updated, in float32.

    PEFT casts each input to the matrices' float32, whose products do not run on tensor cores.
    """
    matrices = [
        matrix
        for layer in model.adapted.modules()
        if isinstance(layer, LoraLayer)
        for matrix in (*layer.lora_A.values(), *layer.lora_B.values())
        if isinstance(matrix, nn.Linear)
    ]
    if not matrices:
        raise UserError("trainer.adapter_precision=backbone: the PEFT method has no LoRA matrices; set float32")

    def multiply(matrix: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda rows: functional.linear(rows, matrix.weight.to(rows.dtype), matrix.bias)

    with ExitStack() as stack:
        stack.enter_context(disable_input_dtype_casting(model.adapted))
        for matrix in matrices:
            stack.enter_context(patched_forward(matrix, multiply(matrix)))
        yield


def _in_training(layer: nn.Module, compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    # evaluation batches both streams, which patches the tuner layers at every pass
    return lambda *args, **kwargs: (compiled if layer.training else plain)(*args, **kwargs)
