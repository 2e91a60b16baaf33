"""What a PEFT method is to the rest: a PEFT configuration, and hooks into the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


class Hooks(Protocol):
    """What a method does during training; the loop knows no method by name."""

    def auxiliary_loss(self) -> torch.Tensor | None:
        """A scalar that is added to the loss of every step."""

    def after_backward(self, step: int) -> None:
        """Called when a step's gradients are complete, before the optimizer moves."""

    def after_step(self, step: int) -> None:
        """Called when the optimizer has moved."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must keep."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what ``state`` returned."""


@dataclass(frozen=True)
class Adapter:
    """A PEFT method, ready to be put on a backbone.

    Attributes:
        config: PEFT's configuration of the method.
        hooks: makes the method's hooks for a run of so many optimizer steps; None if it needs none.
    """

    config: PeftConfig
    hooks: Callable[[PeftModel, int], Hooks] | None = None


def attach(adapter: Adapter, backbone: PreTrainedModel) -> PeftModel:
    """Put the adapter's layers into ``backbone`` (in place), trainable in float32.

    Raises:
        UserError: PEFT refuses (no such target modules, for example).
    """
    from peft import get_peft_model

    from imsm.errors import UserError

    try:
        return get_peft_model(backbone, adapter.config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise UserError(f"the adapter does not fit the backbone: {error}") from error


def target_modules(
    method_roles: list[str],
    roles_by_backbone: dict[str, list[str]],
    *,
    backbone: str,
    backbone_roles: dict[str, list[str]],
) -> list[str]:
    """The module names behind a method's roles on a backbone, the paper's exceptions included.

    Raises:
        UserError: the backbone does not name one of the roles.
    """
    from imsm.errors import UserError

    roles = roles_by_backbone.get(backbone, method_roles)
    missing = [role for role in roles if role not in backbone_roles]
    if missing:
        raise UserError(
            f"backbone={backbone} names no {', '.join(missing)}; it names "
            f"{', '.join(backbone_roles)}: set peft.roles to some of them"
        )
    return [name for role in roles for name in backbone_roles[role]]
