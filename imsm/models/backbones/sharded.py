"""Shard the decoder layers of a backbone over the processes with torch's FSDP2.

Each process keeps 1/N of the rows of every weight of the decoder layers. A forward or backward pass gathers one layer
after the other, and the next one ahead. Everything else is complete in every process: embeddings, final norm, LM head
and what is added to the layers later, such as an adapter. So only passes through the decoder layers communicate.

The files are read row by row into the shards: a process never holds more than its part and one mapped file.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import distributed, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from imsm.models.backbones.decoder import decoder_layers, find_decoder
from imsm.models.backbones.download import fetch_backbone, parts_of_index
from imsm.models.backbones.folder_check import check_decoder
from imsm.models.backbones.loading import (
    LOAD_ERRORS,
    check_attention,
    check_source,
    disable_dropout,
    load_error_message,
)
from imsm.utils.errors import UserError


def load_sharded_backbone(
    *,
    name_or_path: str,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    local_resolver: str | None = None,
    quantization: str | None = None,
    device: torch.device,
) -> PreTrainedModel:
    """Return what `load_backbone` does, with decoder layers sharded over the processes of torch's process group.

    All processes must call it. ``device`` is that of this process; quantization is not supported.

    Raises:
        UserError: the model cannot be loaded, its layers cannot be sharded, or its files are not safetensors with the
            names of the model's weights.
    """
    if quantization is not None:
        raise UserError(f"backbone.quantization={quantization}: cannot be sharded; set engine=single, or null")
    if not hasattr(fsdp, "share_comm_ctx"):
        raise UserError(
            f"engine=fsdp2: PyTorch {torch.__version__} is too old; install 2.11 or later, or set engine=zero3"
        )
    source = check_source(name_or_path, local_resolver=local_resolver, attn_implementation=attn_implementation)
    folder = fetch_backbone(name_or_path=source, revision=revision, local_resolver=None)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_attention(config)
        check_decoder(config, source)
        model = _empty_model(config, source, dtype=getattr(torch, dtype), attn_implementation=attn_implementation)
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        _load_weights(model, folder, source, device=device)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except LOAD_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(load_error_message(source, error)) from error
    disable_dropout(model)
    model.requires_grad_(False).eval().to(device)  # buffers
    _prefetch(model)
    return model


def sharded_layers(model: nn.Module) -> list[FSDPModule]:
    """Return the sharded layers in the order in which a forward pass runs them; none if nothing is sharded."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a weight that may be sharded."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _empty_model(
    config: PretrainedConfig, source: str, *, dtype: torch.dtype, attn_implementation: str | None
) -> PreTrainedModel:
    """Return the model with weights on the meta device; its buffers have their values."""
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=False
        )
    model.tie_weights()
    # private, but read only: weights that transformers keeps in float32, of one list with float16 alone
    kept = [model._keep_in_fp32_modules_strict, *([model._keep_in_fp32_modules] if dtype == torch.float16 else [])]
    if dtype != torch.float32 and any(kept):
        raise UserError(
            f"backbone {source}: {type(model).__name__} keeps some weights in float32, which sharding does not; set "
            "backbone.dtype=float32, or engine=zero3"
        )
    return cast(PreTrainedModel, model)


@torch.no_grad()
def _prefetch(model: PreTrainedModel) -> None:
    """Gather each layer while the one before it is computed."""
    layers = sharded_layers(model)
    # each layer is initialized by its first pass; only then can they share streams, and with them memory
    find_decoder(model)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    fsdp.share_comm_ctx(layers)
    # itself, which is a no-op: without an entry FSDP2 would gather the layer that ran before it, the last one
    layers[0].set_modules_to_backward_prefetch([layers[0]])
    for layer, following in pairwise(layers):
        layer.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([layer])


def _load_weights(model: PreTrainedModel, folder: Path, source: str, *, device: torch.device) -> None:
    """Read this process's part of the files into a model on the meta device."""
    wanted = {name: value for name, value in model.state_dict().items() if value.is_meta}
    found = {}
    for name, weight in _read_parts(folder, source, wanted):
        local = weight.to(device=device, dtype=wanted[name].dtype, copy=True)
        parameter = wanted[name]
        if isinstance(parameter, DTensor):
            local = DTensor.from_local(
                local,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        found[name] = local
    model.load_state_dict(found, strict=False, assign=True)
    model.tie_weights()
    missing = sorted(name for name, value in model.state_dict().items() if value.is_meta)
    if missing:
        raise UserError(
            f"backbone {source}: its files have no {missing[0]} ({len(missing)} names), which sharding reads by the "
            f"names of {type(model).__name__}; download them again, or set engine=zero3"
        )


def _read_parts(folder: Path, source: str, wanted: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this process's rows of every wanted weight."""
    for file in _weight_files(folder, source):
        # one file is mapped at a time
        with safe_open(folder / file, framework="pt") as weights:
            for name in filter(wanted.__contains__, weights.offset_keys()):
                part = weights.get_slice(name)
                if tuple(part.get_shape()) != tuple(wanted[name].shape):
                    raise UserError(
                        f"backbone {source}: {name} has the shape {tuple(part.get_shape())}, the model's is "
                        f"{tuple(wanted[name].shape)}; download the files again"
                    )
                yield name, part[_rows(wanted[name])]


def _rows(parameter: torch.Tensor) -> Any:
    """Return the index of this process's rows of a parameter."""
    if not isinstance(parameter, DTensor):
        return ...
    (placement,) = parameter.placements
    assert placement == Shard(0)
    mesh, rows = parameter.device_mesh, parameter.shape[0]
    # FSDP2 splits as torch.chunk does
    size = -(-rows // mesh.size())
    start = min(rows, size * mesh.get_local_rank())
    return slice(start, min(rows, start + size))


def _weight_files(folder: Path, source: str) -> list[str]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = parts_of_index(index) if index.is_file() else [SAFE_WEIGHTS_NAME]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"backbone {source}: has no {name}; sharding needs all .safetensors files, download them again"
            )
    return names
