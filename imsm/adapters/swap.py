"""Putting layers of one's own in the place of a backbone's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from transformers import PreTrainedModel

from imsm.errors import UserError


def replace_linear_layers(
    backbone: PreTrainedModel,
    target_modules: Iterable[str],
    *,
    layer: Callable[[nn.Linear], nn.Module],
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
            raise UserError(
                f"{type(backbone).__name__} has no module {target}; choose others by peft.target_roles"
            )
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
    return {
        name: module
        for name, module in backbone.named_modules()
        if name == target or name.endswith(f".{target}")
    }
