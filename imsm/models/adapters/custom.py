"""Add adapter methods that PEFT lacks to PEFT itself.

A registered method is attached, saved and loaded by PEFT like its own methods. It consists of a
configuration (`CustomConfig`), a layer (`LinearTunerLayer`) and a tuner that names the layer
(`LinearTuner`). `imsm.models.adapters.loramoe` is one; docs/extending.md shows a shorter one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import CONFIG_NAME, register_peft_method
from torch import nn

from imsm.utils.trust import ADAPTERS, import_trusted_module


@dataclass
class CustomConfig(PeftConfig):
    """Base class of the configuration of a registered method.

    Attributes:
        target_modules: name suffixes of the modules to wrap.
        python_module: module that registers the method, saved so that loading can import it.
    """

    target_modules: list[str] | str | None = None
    python_module: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # PEFT selects the tuner by this field, which its own classes set to a constant.
        self.peft_type = next(kind for kind, known in PEFT_TYPE_TO_CONFIG_MAPPING.items() if known is type(self))
        self.python_module = type(self).__module__


class LinearTunerLayer(nn.Module, BaseTunerLayer):
    """Base class of a layer around an `nn.Linear`, for one adapter.

    ``forward`` must return ``self.base_layer(x)`` while ``self.disable_adapters`` is True. Every
    name in ``adapter_layer_names`` is a parameter set by `add_parameter`.
    """

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.adapter_name = adapter_name
        self._active_adapter: str | list[str] = adapter_name
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add_parameter(self, name: str, *shape: int) -> None:
        """Create an uninitialized float32 parameter on the device of the base layer."""
        # Values are set after all layers exist, so that a tuner controls the order of the random draws.
        value = torch.empty(*shape, dtype=torch.float32, device=self.base_layer.weight.device)
        # PEFT finds parameters to save, load and freeze by the adapter's name in a ParameterDict.
        setattr(self, name, nn.ParameterDict({self.adapter_name: nn.Parameter(value)}))

    def parameter(self, name: str) -> nn.Parameter:
        """Return a parameter set by `add_parameter`."""
        value: nn.Parameter = getattr(self, name)[self.adapter_name]
        return value


class LinearTuner(BaseTuner):
    """Wraps every targeted `nn.Linear` in ``tuner_layer_cls(base_layer, adapter_name, config)``."""

    # Read by PEFT where a configuration lists no target modules; IMSM always lists them.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        for name, module in model.named_modules():
            if self._check_target_module_exists(config, name) and not isinstance(module, nn.Linear):
                raise ValueError(
                    f"{name} is a {type(module).__name__}, and {type(config).__name__} supports nn.Linear only; "
                    "choose other modules by peft.target_roles"
                )

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)  # type: ignore[call-arg]
        self._replace_module(parent, target_name, layer, target)


def register_adapter(name: str, *, config: type[CustomConfig], tuner: type[LinearTuner]) -> None:
    """Add a method to PEFT; ``name`` is in lower case, and its parameters' names begin with it and "_"."""
    kind = name.upper()
    if kind not in PeftType.__members__:
        # register_peft_method accepts members of PeftType only, and an enum has no public way to add one.
        member = str.__new__(PeftType, kind)
        member._name_ = member._value_ = kind
        type.__setattr__(PeftType, kind, member)
        PeftType._member_names_.append(kind)
        PeftType._member_map_[kind] = PeftType._value2member_map_[kind] = member
    # PEFT freezes every parameter of the model whose name does not contain this prefix.
    tuner.prefix = f"{name}_"
    register_peft_method(name=name, config_cls=config, model_cls=tuner)


def import_custom_method(folder: Path) -> None:
    """Import the module that registers the method of the adapter in ``folder``, if it names one.

    Raises:
        UserError: the module is not trusted (`imsm.utils.trust`), or cannot be imported.
        OSError: adapter_config.json cannot be read.
        ValueError: adapter_config.json is invalid, or the module does not register the method.
    """
    # PeftConfig.from_pretrained fails for a type that is not registered yet, so the file is read here.
    saved = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    module, kind = saved.get("python_module"), saved.get("peft_type")
    if module is None or kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    import_trusted_module(module, within=ADAPTERS, key="python_module", source=folder / CONFIG_NAME)
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{module} does not register the adapter method {kind}")
