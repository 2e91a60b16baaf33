"""Sharded layers in one process, and weights in 4 bits, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from imsm.distributed.lock_step import LockStep
from imsm.models.backbones.loading import load_backbone
from imsm.models.backbones.sharded import load_sharded_backbone, sharded_layers
from tests.gpu.tiny import DEVICE, both_dtypes, lora_with_dropout, losses, padded_inputs
from tests.models.siamese.tiny import perturb, tiny_backbone, tiny_siamese

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def group() -> Iterator[torch.device]:
    """A process group of this process alone; yields its device, on a GPU with its index."""
    device = torch.device(DEVICE.type, 0) if DEVICE.type == "cuda" else DEVICE
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield device
    distributed.destroy_process_group()


@both_dtypes
def test_sharded_layers_give_the_losses_and_hidden_states_of_complete_ones(
    group: torch.device, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_backbone("llama", dtype=dtype).save_pretrained(tmp_path)
    options = {"name_or_path": str(tmp_path), "dtype": str(dtype).removeprefix("torch.")}
    build = partial(tiny_siamese, "llama", lora_with_dropout(0.0), dtype=dtype)
    plain = build(backbone=load_backbone(**options).to(group)).to(group)  # type: ignore[arg-type]
    sharded = build(backbone=load_sharded_backbone(**options, device=group)).to(group)
    assert len(sharded_layers(sharded)) == 3 and not sharded_layers(plain)
    inputs, mask = padded_inputs("left")
    with torch.inference_mode():
        expected = plain.streams.both_hidden_states(inputs, cache=None)
        with LockStep(sharded_layers(sharded), device=group):
            found = sharded.streams.both_hidden_states(inputs, cache=None)
    assert all(torch.equal(one[mask], other[mask]) for one, other in zip(found, expected, strict=True))
    for model in (plain, sharded):
        model.activation_checkpointing_enable()
    assert losses(sharded) == pytest.approx(losses(plain), abs=1e-5 if dtype == torch.float32 else 3e-3)


@both_dtypes
def test_in_4_bits_both_streams_are_bit_equal_before_the_first_update(tmp_path: Path, dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_backbone("llama").save_pretrained(tmp_path)
    name = str(dtype).removeprefix("torch.")
    backbone = load_backbone(name_or_path=str(tmp_path), dtype=name, quantization="nf4")
    model = tiny_siamese("llama", lora_with_dropout(0.0), backbone=backbone).to(DEVICE).train()
    inputs, mask = padded_inputs("right")
    perturbed = model.streams.both_hidden_states(inputs, cache=None)
    assert not torch.equal(*(each[mask] for each in perturbed))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.zero_()
    original, tuned = model.streams.both_hidden_states(inputs, cache=None)
    assert tuned.requires_grad and torch.equal(original[mask], tuned[mask])
    perturb(model)
    assert losses(model, steps=3)[-1] > 0
