"""Export a run for the vLLM plugin (`imsm.serving.vllm`): the folder that ``vllm serve`` takes.

The folder holds the backbone's own weight files, the tuned stream's changes and the gate (`imsm.safetensors`),
`config.json` with the plugin's architecture and the key "imsm", `generation_config.json` and the tokenizer.

The change of an adapted layer is found by running it on unit vectors, which covers every method whose layers are
linear for given weights. `imsm.safetensors` holds, by layer of the backbone,

    imsm.delta.NAME.up, imsm.delta.NAME.down    factors of a change of low rank, (out, r) and (r, in)
    imsm.delta.NAME.delta                       any other change, (out, in)
    imsm.delta.NAME.bias                        change of the bias, (out,)
    imsm.gate.INPUT, imsm.gate.up               the blocks of W_A (R, D), and W_B (C, R)
    imsm.gate.bias                              bias of the gate's logit (C,)
"""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from imsm.models.backbones.loading import resolve_path
from imsm.models.siamese.gate import Gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.export_merged import load_verified, write_tokenizer
from imsm.utils.errors import UserError, first_line
from imsm.utils.json_files import read_json
from imsm.utils.new_folder import new_folder
from imsm.utils.run_dir import RunDir

WEIGHTS = "imsm.safetensors"
ARCHITECTURES = {
    name: f"Siamese{name}"
    for name in (
        "Gemma3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
    )
}  # fmt: skip
"""Architectures of transformers, and the plugin's for both streams (`imsm.serving.vllm.ARCHITECTURES`)."""
POOLINGS = ("mean", "last")
"""Poolings of the query that attention can compute; a maximum is none."""
_MAX_RANK = 128
"""Largest rank of a change that is stored as factors."""
_TOLERANCE = 1e-4
"""Largest error of the linear change, relative to the layer's output."""


def export_vllm(run: RunDir, folder: Path, *, link: bool = False) -> dict[str, int]:
    """Write a run to a new folder for vLLM; return the number of layers by kind of change.

    ``link`` refers to the backbone's weight files by symbolic links instead of copies.

    Raises:
        UserError: vLLM cannot compute the run's model (its architecture, method or gate), the run's files changed, or
            ``folder`` is not new.
    """
    with new_folder(folder, option="--vllm") as temporary:
        model = load_verified(run, dtype="float32")
        architecture = _check_architecture(run, model)
        gate, gate_settings = _gate_tensors(run, model)
        changes = _layer_changes(run, model)
        source = _source_folder(model)
        tensors = {f"imsm.{name}": tensor.contiguous() for name, tensor in {**gate, **changes}.items()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        _write_backbone(source, temporary, link=link)
        imsm = {"format": 1, "run": run.path.name, "gate": gate_settings, "pooling": model.config.pooling}
        _write_config(model, source, temporary / CONFIG_NAME, architecture=architecture, settings=imsm)
        model.generation_config.save_pretrained(temporary)
        write_tokenizer(run, temporary, source=str(source), revision=None)
    kinds = [name.rpartition(".")[2] for name in changes]
    return {"low rank": kinds.count("up"), "dense": kinds.count("delta"), "bias": kinds.count("bias")}


def _check_architecture(run: RunDir, model: SiameseForCausalLM) -> str:
    name = type(model.backbone).__name__
    if name not in ARCHITECTURES:
        raise UserError(
            f"run={run.path}: the vLLM plugin has {', '.join(ARCHITECTURES)}, not {name}; serve it with imsm serve"
        )
    if model.streams.virtual_tokens is not None or not model.streams.layers:
        raise UserError(
            f"run={run.path}: its method changes no linear layer (a learned prompt, for instance), which the vLLM "
            "plugin does not compute; serve it with imsm serve"
        )
    return ARCHITECTURES[name]


def _gate_tensors(run: RunDir, model: SiameseForCausalLM) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Return the gate's tensors by name, and its settings; the latter None without a gate."""
    gate = model.gate
    if gate is None:
        return {}, None
    reason = None
    if type(gate) is not Gate:
        reason = f"a gate of class {type(gate).__name__}"
    elif gate.query_share is not None:
        reason = "gate.query_share"
    elif gate.reads_query and model.config.pooling not in POOLINGS:
        reason = f"gate.pooling={model.config.pooling}"
    elif model.skip_threshold is not None:
        reason = "gate.skip_threshold"
    if reason is not None:
        raise UserError(f"run={run.path}: the vLLM plugin does not compute {reason}; serve it with imsm serve")
    assert isinstance(gate, Gate)
    tensors: dict[str, torch.Tensor] = {}
    if gate.down is not None and gate.up is not None:
        blocks = gate.down.weight.chunk(len(gate.inputs), dim=1)
        tensors = dict(zip(gate.inputs, blocks, strict=True)) | {"up": gate.up.weight}
    if gate.bias is not None:
        tensors["bias"] = gate.bias
    named = {f"gate.{name}": tensor.detach().clone() for name, tensor in tensors.items()}
    return named, {"inputs": list(gate.inputs), "min_original_weight": gate.min_original_weight}


def _layer_changes(run: RunDir, model: SiameseForCausalLM) -> dict[str, torch.Tensor]:
    """Return the changes of all adapted layers by name and kind.

    Raises:
        UserError: a layer is not linear.
    """
    adapted = {id(layer) for layer in model.streams.layers}
    changes: dict[str, torch.Tensor] = {}
    for name, layer in model.backbone.named_modules():
        if id(layer) in adapted:
            try:
                change = linear_change(layer)
            # of PEFT: a layer that needs other inputs than (B, T, in), or computes in its own precision
            except (RuntimeError, TypeError, ValueError) as error:
                raise UserError(
                    f"run={run.path}: {name} is not a linear layer with a linear change ({first_line(error)}), which "
                    "the vLLM plugin does not compute; serve it with imsm serve"
                ) from error
            changes |= {f"delta.{name}.{kind}": tensor for kind, tensor in change.items()}
    return changes


@torch.inference_mode()
def linear_change(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to a linear layer: "up" and "down", or "delta"; "bias" if it changes.

    Raises:
        ValueError: the adapter does not wrap a linear layer, or its change is not linear.
    """
    # float64: the difference of two large outputs keeps its digits
    layer = copy.deepcopy(layer).double().eval()
    base: Any = getattr(layer, "base_layer", None)
    if not isinstance(base, nn.Linear):
        raise ValueError(f"{type(base or layer).__name__} is not torch.nn.Linear")
    # (1, T, in), since some methods read shapes of a batch of sequences
    units, size = torch.eye(base.in_features, dtype=torch.float64)[None], base.in_features
    bias = (layer(torch.zeros_like(units[:, :1])) - base(torch.zeros_like(units[:, :1])))[0, 0]
    delta = (layer(units) - base(units) - bias)[0].T
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((2, 3, size), generator=generator, dtype=torch.float64)
    expected = base(inputs) + inputs @ delta.T + bias
    error = float((layer(inputs) - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:
        raise ValueError(f"relative error {error:.1g} on random inputs")
    change = _factors(delta) if bool(delta.any()) else {}
    if bool(bias.any()):
        change["bias"] = bias
    return {name: tensor.float() for name, tensor in change.items()}


def _factors(delta: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return "up" and "down" of a matrix (out, in) of low rank, otherwise "delta"."""
    generator = torch.Generator().manual_seed(0)
    columns = min(_MAX_RANK, min(delta.shape) // 2)
    random = torch.randn((delta.shape[1], columns), generator=generator, dtype=delta.dtype)
    # columns of delta @ random span those of a matrix of at most this rank (Halko et al., 2011)
    basis, _ = torch.linalg.qr(delta @ random)
    inner, values, down = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    up = basis @ inner[:, :rank] * values[:rank]
    if float((up @ down[:rank] - delta).norm() / delta.norm()) > 1e-9:
        return {"delta": delta}
    return {"up": up, "down": down[:rank]}


def _source_folder(model: SiameseForCausalLM) -> Path:
    """Return the folder of the backbone's own files."""
    backbone = model.config.backbone
    source = resolve_path(backbone["name_or_path"], local_resolver=backbone.get("local_resolver"))
    return Path(str(cached_file(source, CONFIG_NAME, revision=backbone.get("revision")))).parent


def _write_backbone(source: Path, folder: Path, *, link: bool) -> None:
    """Copy or link the backbone's weight files, and list the plugin's tensors in their index if there is one."""
    index = source / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        values = read_json(index, fix="download the backbone again", shape={"weight_map": dict})
        names = sorted(set(values["weight_map"].values()))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            values["weight_map"] |= dict.fromkeys(file.keys(), WEIGHTS)
        (folder / index.name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    elif (source / SAFE_WEIGHTS_NAME).is_file():
        names = [SAFE_WEIGHTS_NAME]
    else:
        raise UserError(f"{source}: holds no safetensors files, which vLLM would read; convert the backbone's files")
    for name in names:
        # an index can name any path
        if Path(name).name != name:
            raise UserError(f"{index}: names {name}, which is outside its folder; download the backbone again")
        target = (source / name).resolve()
        if link:
            os.symlink(target, folder / name)
        else:
            shutil.copyfile(target, folder / name)


def _write_config(
    model: SiameseForCausalLM, source: Path, path: Path, *, architecture: str, settings: dict[str, Any]
) -> None:
    """Write the backbone's configuration with the plugin's architecture and settings."""
    values = read_json(source / CONFIG_NAME, fix="download the backbone again")
    # RoPE settings and others in the form of the backbone's file, which older versions of transformers read
    if values.get("architectures") != [type(model.backbone).__name__]:
        values = model.backbone.config.to_dict()
    values.pop("_name_or_path", None)
    values.pop("torch_dtype", None)
    values |= {"architectures": [architecture], "dtype": model.config.backbone["dtype"], "imsm": settings}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
