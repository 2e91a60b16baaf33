"""Saving and loading a siamese model: configuration, adapter and gate, never the backbone.

A folder holds ``config.json``, ``generation_config.json``, ``adapter/`` (PEFT's own format) and
``gate.safetensors``.
"""

from __future__ import annotations

import importlib
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from imsm.models.adapters.adapter_check import BackboneSnapshot, check_adapter, snapshot
from imsm.models.adapters.base import freeze_buffers
from imsm.models.adapters.custom import import_custom_method
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.loading import load_backbone
from imsm.models.siamese.config import SiameseConfig
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from imsm.models.siamese.model import SiameseForCausalLM

ADAPTER = "adapter"
GATE = "gate.safetensors"
_UNLOADABLE = (ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
HUB_OPTIONS = frozenset(
    {
        "_commit_hash",
        "adapter_kwargs",
        "cache_dir",
        "code_revision",
        "force_download",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
    }
)
"""Options of a hub that auto classes hand to every model."""


def save_model(model: SiameseForCausalLM, folder: Path) -> None:
    """Write ``model``'s configuration, adapter and gate to ``folder``.

    Raises:
        UserError: the configuration does not say where the backbone comes from.
    """
    source = _source(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.stream = model.stream
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if isinstance(model.adapted, PeftModel):
        save_adapter(model.adapted, folder / ADAPTER, backbone_path=source["name_or_path"])
    if model.gate is not None:
        save_file(_contiguous(model.gate.state_dict()), folder / GATE)


def save_adapter(adapted: PeftModel, folder: Path, *, backbone_path: str) -> None:
    """Write the adapter as PEFT does, so that PEFT alone can load it.

    An AdaLoRA adapter keeps its full rank, pruned directions being zero: PEFT would cut them off
    and, on loading, scale by the smaller rank, which is another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = adapted.peft_config["default"]
    pattern = getattr(config, "rank_pattern", None)
    path, inference = config.base_model_name_or_path, config.inference_mode
    if pattern:
        config.rank_pattern = {}
    try:
        # in inference mode PEFT would keep what goes into a prompt's encoder, not what comes out
        values = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        save_file(_contiguous(values), folder / "adapter_model.safetensors")
        config.base_model_name_or_path, config.inference_mode = backbone_path, True
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode = path, inference
        if pattern:
            config.rank_pattern = pattern


def load_model(
    model_class: type[SiameseForCausalLM],
    folder: Path,
    *,
    config: PretrainedConfig | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    trainable: bool,
) -> SiameseForCausalLM:
    """Rebuild the model that ``save`` wrote; a run folder keeps it in `model/`."""
    inner = folder / "model"
    folder = inner if (inner / CONFIG_NAME).is_file() else folder
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder}: no siamese model here (no {CONFIG_NAME}); give the folder of a finished run")
    if not isinstance(config, SiameseConfig):
        config = _read_config(folder)
    source = _source(config)
    if dtype not in (None, "auto"):  # a pipeline says "auto" of its own accord
        source["dtype"] = str(dtype).removeprefix("torch.")
    backbone = load_backbone(**source)
    place = backbone.device if device is None else torch.device(device)
    backbone.to(place)  # type: ignore[arg-type]
    adapted: nn.Module = backbone
    before = None
    if (folder / ADAPTER).is_dir():
        adapted, before = load_adapter(backbone, folder / ADAPTER, trainable=trainable)
    gate = _load_gate(folder, config=config, trainable=trainable) if config.gate else None
    try:
        model = model_class(config, adapted, gate)
    except ValueError as error:
        raise UserError(f"{folder}: its adapter is missing ({error})") from error
    model.to(place)  # type: ignore[arg-type]
    if before is not None:
        check_adapter(model, before)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_weights_into(model: SiameseForCausalLM, folder: Path) -> None:
    """Give the adapter and the gate of ``model`` the values that ``save`` wrote of a model like it.

    Raises:
        UserError: they are of another model, or are not all that ``model`` learns.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in learned:
            parameter.fill_(math.nan)  # what stays so was not in the files
    _fill_adapter(model.adapted, folder / ADAPTER)
    if model.gate is not None:
        _fill_gate(model.gate, folder)
    if not all(bool(parameter.isfinite().all()) for parameter in learned):
        raise UserError(f"{folder}: does not keep all that is learned; nothing can go on from it")


def _fill_adapter(adapted: Any, folder: Path) -> None:
    try:
        values = load_file(folder / "adapter_model.safetensors")
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if values.keys() != own.keys():
            raise ValueError("it has other layers than the model")
        set_peft_model_state_dict(adapted, values)
    except _UNLOADABLE as error:
        raise UserError(f"{folder}: this adapter cannot be loaded ({error})") from error


def _fill_gate(gate: nn.Module, folder: Path) -> None:
    try:
        gate.load_state_dict(load_file(folder / GATE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / GATE}: not the gate of {CONFIG_NAME} ({error})") from error


def _read_config(folder: Path) -> SiameseConfig:
    try:
        return SiameseConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG_NAME}: is damaged ({error})") from error


def load_adapter(backbone: PreTrainedModel, folder: Path, *, trainable: bool) -> tuple[nn.Module, BackboneSnapshot]:
    """The backbone with the adapter that lies in ``folder``, and what it was before.

    Raises:
        UserError: the adapter cannot be used, or cannot be trained further.
    """
    try:
        import_custom_method(folder)
        config: Any = PeftConfig.from_pretrained(str(folder))
    except _UNLOADABLE as error:
        raise UserError(f"{folder}: this adapter cannot be loaded ({error})") from error
    reject_unsupported(config)
    if trainable and config.is_prompt_learning:
        raise UserError(
            f"{folder}: cannot be trained further, since PEFT keeps a learned prompt and not what "
            "made it; an interrupted run goes on from its checkpoint"
        )
    before = snapshot(backbone, config)
    try:
        with warnings.catch_warnings():  # PEFT asks transformers by a name that is going
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = PeftModel.from_pretrained(backbone, str(folder), is_trainable=trainable)
        lacking = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        lacking -= load_file(folder / "adapter_model.safetensors").keys()
        if lacking:  # PEFT would go on from values drawn at random
            raise ValueError(f"it has no {min(lacking)}")
    except _UNLOADABLE as error:
        raise UserError(f"{folder}: this adapter cannot be loaded ({error})") from error
    if not trainable:  # on a bfloat16 backbone PEFT leaves a cast adapter trainable all the same
        return adapted.requires_grad_(False), before
    freeze_buffers(adapted)
    return adapted, before


def _load_gate(folder: Path, *, config: SiameseConfig, trainable: bool) -> nn.Module:
    gate = build_gate(hidden_size=config.hidden_size, **(config.gate or {}))
    _fill_gate(gate, folder)
    return gate if trainable else gate.requires_grad_(False)


def build_gate(*, _target_: str, hidden_size: int, **arguments: Any) -> nn.Module:
    """Build the gate class that ``_target_`` names (a dotted path to an `nn.Module`).

    Only classes of modules are called: a folder from somebody else cannot name another function.

    Raises:
        UserError: the class cannot be found, or is no module.
    """
    module_name, _, class_name = _target_.rpartition(".")
    try:
        gate_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"gate {_target_}: cannot be imported ({error})") from error
    if not (isinstance(gate_class, type) and issubclass(gate_class, nn.Module)):
        raise UserError(f"gate {_target_}: not a torch.nn.Module class")
    try:
        return gate_class(hidden_size=hidden_size, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"gate {_target_}: does not take these arguments ({error})") from error


def _source(config: SiameseConfig) -> dict[str, Any]:
    if not config.backbone or "name_or_path" not in config.backbone:
        raise UserError('the configuration names no backbone: set config.backbone = {"name_or_path": ...}')
    return dict(config.backbone)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU: what layers share (RandLoRA's bases) is written for each of them."""
    return {n: v.detach().to("cpu", copy=True).contiguous() for n, v in tensors.items()}
