"""Methods that PEFT does not have: what their configuration must offer, and how they are saved.

A folder holds `adapter_config.json` (the configuration's class and values) and
`adapter_model.safetensors` (the layers' values, without those of the layers they wrap).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedModel

from imsm.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def replace_linear_layers(
    backbone: PreTrainedModel, target_modules: Iterable[str], *, layer: Callable[[nn.Linear], nn.Module]
) -> PreTrainedModel:
    """Replace linear layers of ``backbone``, in place; its own weights stay what they are.

    Args:
        backbone: the model.
        target_modules: the last part (or parts) of the layers' names, as PEFT takes them.
        layer: makes the new layer around the old one.

    Raises:
        UserError: a name that no module has, or a module that is not an `nn.Linear`.
    """
    found = {target: _named(backbone, target) for target in target_modules}
    for target, modules in found.items():
        if not modules:
            raise UserError(f"{type(backbone).__name__} has no module {target}; choose others by peft.target_roles")
        for name, module in modules.items():
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"{name} of {type(backbone).__name__} is a {type(module).__name__}: this "
                    "method takes nn.Linear layers only; choose others by peft.target_roles"
                )
    for modules in found.values():
        for name, module in modules.items():
            parent, _, own = name.rpartition(".")
            assert isinstance(module, nn.Linear)
            setattr(backbone.get_submodule(parent), own, layer(module))
    return backbone


def _named(backbone: PreTrainedModel, target: str) -> dict[str, nn.Module]:
    return {name: module for name, module in backbone.named_modules() if name == target or name.endswith(f".{target}")}


CONFIG = "adapter_config.json"
VALUES = "adapter_model.safetensors"


@runtime_checkable
class CustomAdapterConfig(Protocol):
    """The configuration of a method that PEFT does not have: a dataclass of plain values.

    Its layers have the class attribute ``adapter_layer = True``, the layer that they wrap as
    ``base_layer``, and ``_disable_adapters``: True makes them that layer, bit for bit.
    """

    def attach(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Put the method's layers into ``backbone``, in place, trainable in float32."""


def attach_custom(config: CustomAdapterConfig, backbone: PreTrainedModel) -> PreTrainedModel:
    """Put the layers into ``backbone``, which then carries ``config`` as ``own_adapter``."""
    adapted = config.attach(backbone)
    adapted.own_adapter = config  # type: ignore[assignment]
    return adapted


def custom_config(adapted: nn.Module) -> CustomAdapterConfig | None:
    """The configuration that `attach_own` left; None on a model without such a method."""
    found = getattr(adapted, "own_adapter", None)
    return found if isinstance(found, CustomAdapterConfig) else None


def save_custom(adapted: nn.Module, folder: Path) -> None:
    """Write the configuration and the values of a model that `attach_own` returned."""
    from safetensors.torch import save_file

    config: Any = custom_config(adapted)
    folder.mkdir(parents=True, exist_ok=True)
    values = {n: v.detach().cpu().contiguous() for n, v in _values(adapted).items()}
    save_file(values, folder / VALUES)
    name = f"{type(config).__module__}.{type(config).__qualname__}"
    text = json.dumps({"own_method": name, **asdict(config)}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def is_custom(folder: Path) -> bool:
    """Whether `save_own` wrote this adapter (and not PEFT)."""
    try:
        return "own_method" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_custom(backbone: PreTrainedModel, folder: Path, *, trainable: bool) -> PreTrainedModel:
    """Put what `save_own` wrote into a plain backbone.

    Raises:
        UserError: the folder names no such method, or its values do not fit.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = _class(saved.pop("own_method"))(**saved)
        adapted = attach_custom(config, backbone)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: this adapter cannot be loaded ({error})") from error
    fill_custom(adapted, folder)
    for place in _values(adapted).values():
        place.requires_grad_(trainable)
    return adapted


def fill_custom(adapted: nn.Module, folder: Path) -> None:
    """Give the layers that `attach_own` put in the values that `save_own` wrote.

    Raises:
        UserError: they do not fit.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(folder / VALUES)
        places = _values(adapted)
        if values.keys() != places.keys():
            raise ValueError("other layers than the configuration's")
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(values[name])
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: this adapter cannot be loaded ({error})") from error


def _class(dotted: str) -> Any:
    """The configuration's class; a folder from somebody else cannot name anything but such one.

    Raises:
        ValueError: it is not found, or is no configuration of a method.
    """
    module_name, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{dotted} cannot be imported: {error}") from error
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, "attach")):
        raise ValueError(f"{dotted} is no configuration of a method")
    return found


def _values(adapted: nn.Module) -> dict[str, torch.Tensor]:
    """The values of the method's layers by name, those of the wrapped layers left out."""
    return {
        f"{place}.{name}": value
        for place, layer in adapted.named_modules()
        if getattr(type(layer), "adapter_layer", False)
        for name, value in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
