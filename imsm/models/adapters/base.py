"""What a PEFT method is to the rest: a configuration, and hooks into the training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from imsm.models.adapters.custom import CustomAdapterConfig, attach_custom
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel


class TrainingCallbacks(Protocol):
    """What a method does during training; the loop knows no method by name.

    ``touches_parameters``: whether it reads gradients or changes values. If so, all of them are
    whole during `after_backward` and `after_step`; otherwise these two are not called.
    """

    @property
    def needs_full_params(self) -> bool:
        """See above."""

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Called before a micro-batch's pass: its mask (B, T) and its examples' types (B,)."""

    def auxiliary_loss(self) -> torch.Tensor | None:
        """A scalar that is added to the micro-batch's loss, called after its pass."""

    def after_backward(self, step: int) -> None:
        """Called when a step's gradients are complete, before the optimizer moves."""

    def after_step(self, step: int) -> None:
        """Called when the optimizer has moved."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must keep."""

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what ``state`` returned."""


@dataclass(frozen=True)
class AdapterSpec:
    """A PEFT method, ready to be put on a backbone.

    Attributes:
        config: PEFT's configuration of the method, or its own.
        hooks: makes the method's hooks for a run of so many optimizer steps, given what `attach`
            returned; None if it needs none.
    """

    config: PeftConfig | CustomAdapterConfig
    callbacks: Callable[[nn.Module, int], TrainingCallbacks] | None = None


def attach_adapter(adapter: AdapterSpec, backbone: PreTrainedModel) -> nn.Module:
    """Put the adapter's layers into ``backbone`` (in place), trainable in float32.

    Returns:
        The model to train: a `PeftModel`, or for a method of our own the backbone itself, which
        then carries the configuration as ``own_adapter``.

    Raises:
        UserError: PEFT refuses (no such target modules, for example), the method is one of
            `imsm.models.adapters.unsupported`, or it overwrites the backbone's weights, so that the adapter's
            absence would not give the original model back.
    """
    from peft import get_peft_model

    reject_unsupported(adapter.config)
    _check_targets(adapter.config, backbone)
    before = _sampled(backbone)
    try:
        with warnings.catch_warnings():  # PEFT asks transformers by a name that is going
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # norms
            warnings.filterwarnings("ignore", "Detected that the base layer has no", UserWarning)
            if isinstance(adapter.config, CustomAdapterConfig):
                adapted: nn.Module = attach_custom(adapter.config, backbone)
            else:
                adapted = get_peft_model(backbone, adapter.config, autocast_adapter_dtype=True)
                _check_reloadable(adapter.config)
    except (ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the adapter does not fit the backbone: {error}") from error
    after = _sampled(backbone)
    changed = [name for name, values in before.items() if not values.equal(after.get(name, values))]
    if changed:
        raise UserError(
            f"peft: {type(adapter.config).__name__} overwrites the backbone's weights "
            f"({changed[0]} and {len(changed) - 1} more): with its adapter off the model would not "
            "be the original. Choose another method or initialisation"
        )
    freeze_buffers(adapted)
    return adapted


def _check_targets(config: PeftConfig | CustomAdapterConfig, backbone: PreTrainedModel) -> None:
    """PEFT passes over a name that no module has as long as another one is found.

    Raises:
        UserError: a listed target is no module of the backbone.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    targets = getattr(config, "target_modules", None) or ()
    if isinstance(targets, str):  # a pattern, or a word of PEFT's
        return
    places = [f".{name}" for name, _ in backbone.named_modules()]
    missing = [t for t in sorted(targets) if not any(p.endswith(f".{t}") for p in places)]
    if missing:
        linear = (nn.Linear, Conv1D)
        has = {n.rpartition(".")[2] for n, m in backbone.named_modules() if isinstance(m, linear)}
        raise UserError(
            f"{type(backbone).__name__} has no module {', '.join(missing)} (its linear layers: "
            f"{', '.join(sorted(has))}); choose others by peft.target_roles, or name them in the "
            "backbone's roles (docs/extending.md)"
        )


def _check_reloadable(config: PeftConfig) -> None:
    """PEFT fills in what was left out, and not every such configuration can be loaded again.

    Raises:
        ValueError: this one cannot: better said now than after the training.
    """
    from peft import PeftConfig

    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        PeftConfig.from_pretrained(folder)


def freeze_buffers(adapted: nn.Module) -> None:
    """Freeze what PEFT's layers keep besides their adapter weights (AdaLoRA's ``ranknum``).

    PEFT re-registers these when it casts an adapter on a bfloat16 backbone to float32, and they
    come out trainable; they are no part of a saved adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import ParameterDict

    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.other_param_names:
                constants = getattr(layer, name, None)
                if isinstance(constants, ParameterDict):
                    constants.requires_grad_(False)


def freeze_adapter(adapted: nn.Module) -> None:
    """Leave a finished adapter as it is: nothing of it learns, and it answers as it always does.

    A model that is trained hands its mode down to its parts, which would bring the adapter's
    dropout back; the backbone has none.
    """
    adapted.requires_grad_(False).eval()

    def stay(mode: bool = True) -> nn.Module:
        return adapted

    adapted.train = stay  # type: ignore[method-assign]


def _sampled(backbone: PreTrainedModel, *, values: int = 512) -> dict[str, torch.Tensor]:
    """Some values of every weight, under the name that it has without an adapter."""
    found = {}
    for name, weight in backbone.state_dict().items():
        if not weight.is_meta:
            plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            found[plain] = weight.reshape(-1)[:: max(1, weight.numel() // values)].clone()
    return found
