"""Adapter methods: building one from its configuration, and attaching it to a backbone."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, cast

import peft
import torch
from annotated_types import Ge
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from imsm.models.adapters.unsupported import reject_unsupported
from imsm.models.backbones.sharded import local_part, sharded_layers
from imsm.utils.errors import UserError, first_line
from imsm.utils.instantiate import Count, Positive, Probability, accepts_target_modules, argument_errors
from imsm.utils.messages import did_you_mean
from imsm.utils.options import closest_match
from imsm.utils.trust import ADAPTERS, import_trusted

RUN_FIELDS = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "python_module",
    "revision",
    "task_type",
)
"""Fields of a PEFT configuration that the run sets."""
_RANGES: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": Count, "lora_alpha": Count, "lora_dropout": Probability},
    "OFTConfig": {"r": Annotated[int, Ge(0)], "oft_block_size": Annotated[int, Ge(0)], "module_dropout": Probability},
    "VeraConfig": {"r": Count, "vera_dropout": Probability, "d_initial": Positive, "projection_prng_key": Count},
    "PromptTuningConfig": {"num_virtual_tokens": Count},
    "PrefixTuningConfig": {"num_virtual_tokens": Count, "encoder_hidden_size": Count | None},
    "PromptEncoderConfig": {
        "num_virtual_tokens": Count,
        "encoder_reparameterization_type": Literal["MLP", "LSTM"],
        "encoder_hidden_size": Count,
        "encoder_num_layers": Count,
        "encoder_dropout": Probability,
    },
}
"""Narrower types than PEFT declares, for values that PEFT rejects late or not at all."""


class TrainingCallbacks:
    """Hooks of an adapter method into the training loop; by default they do nothing.

    Attributes:
        needs_full_params: whether `after_backward` and `after_step` are called. They read gradients
            or change values, so a sharding engine gathers all parameters and gradients for them.
    """

    needs_full_params: bool = False

    def before_forward(self, attention_mask: torch.Tensor, task_types: torch.Tensor) -> None:
        """Called before the forward pass of a micro-batch, with its mask (B, T) and task types (B,)."""

    def auxiliary_loss(self) -> torch.Tensor | None:
        """Return a scalar to add to the loss of the micro-batch; called after its forward pass."""
        return None

    def after_backward(self, step: int) -> None:
        """Called when the gradients of a step are complete, before the optimizer step."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer step."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state to save in a checkpoint."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter method, ready to be attached to a backbone.

    Attributes:
        config: PEFT configuration of the method.
        callbacks: builds the training callbacks from the model that `attach_adapter` returned and
            the number of optimizer steps; None if the method needs none.
    """

    config: PeftConfig
    callbacks: Callable[[nn.Module, int], TrainingCallbacks] | None = None


def adapter_from_config(target: str, kwargs: Mapping[str, Any], target_modules: Sequence[str]) -> AdapterSpec:
    """Build the adapter that a yaml in conf/peft describes.

    ``target`` is the dotted name of a PEFT configuration class, or of a function that returns an
    `AdapterSpec`; ``target_modules`` are passed on if it accepts them.

    Raises:
        UserError: the target cannot be imported or is of another kind, or rejects its arguments.
    """
    factory, given = import_factory(target), dict(kwargs)
    if accepts_target_modules(factory):
        given["target_modules"] = list(target_modules)
    if is_config_class(factory):
        # IA3Config accepts a subset of target_modules only, and a backbone may lack some of the modules.
        if isinstance(given.get("feedforward_modules"), list):
            given["feedforward_modules"] = [n for n in target_modules if n in given["feedforward_modules"]]
        return AdapterSpec(instantiate_config(factory, given, section="peft"))
    adapter: AdapterSpec = factory(**given)
    return adapter


def adapter_errors(target: str, kwargs: Mapping[str, Any], target_modules: Sequence[str]) -> list[str]:
    """Check the arguments of `adapter_from_config` without loading a model; return one line per error."""
    try:
        factory = import_factory(target)
        errors = config_argument_errors("peft", factory, kwargs, supplied=["target_modules"])
        # Values that depend on each other are checked by the constructor only.
        if not errors:
            adapter_from_config(target, kwargs, target_modules)
    except UserError as error:
        return [str(error)]
    return errors


def import_factory(target: str) -> Callable[..., Any]:
    """Return the PEFT configuration class, or import the trusted function, that ``target`` names.

    Raises:
        UserError: It names anything else.
    """
    package, _, name = target.rpartition(".")
    hint = ""
    if package == peft.__name__:
        factory: Any = getattr(peft, name, None)
        match = closest_match(name, (each for each, value in vars(peft).items() if is_config_class(value)))
        hint = did_you_mean(match and f"{package}.{match}")
    else:
        factory = import_trusted(target, within=ADAPTERS, key="peft._target_")
    if not is_config_class(factory) and (package == peft.__name__ or inspect.isclass(factory)):
        raise UserError(
            f"peft._target_={target}: must be a configuration class of PEFT (peft.LoraConfig), or a function that "
            f"returns an AdapterSpec{hint}"
        )
    return cast("Callable[..., Any]", factory)


def is_config_class(factory: Callable[..., Any]) -> bool:
    """Whether ``factory`` is a PEFT configuration class."""
    return inspect.isclass(factory) and issubclass(factory, PeftConfig)


def config_argument_errors(
    section: str, factory: Callable[..., Any], kwargs: Mapping[str, Any], *, supplied: Sequence[str] = ()
) -> list[str]:
    """Check ``kwargs`` against the fields of a PEFT configuration or the signature of a builder."""
    return argument_errors(
        section,
        factory,
        kwargs,
        supplied=[*supplied, *(RUN_FIELDS if is_config_class(factory) else ())],
        annotations=_RANGES.get(getattr(factory, "__name__", ""), {}),
    )


def instantiate_config(factory: Callable[..., PeftConfig], kwargs: Mapping[str, Any], *, section: str) -> PeftConfig:
    """Instantiate a PEFT configuration.

    Raises:
        UserError: PEFT rejects the values, or `imsm.models.adapters.unsupported` rejects the method.
    """
    try:
        with warnings.catch_warnings():
            # PEFT warns about target modules, which are not known yet when only a yaml is checked.
            warnings.simplefilter("ignore")
            config = factory(task_type="CAUSAL_LM", **kwargs)
    except (AssertionError, ImportError, LookupError, TypeError, ValueError) as error:
        name = getattr(factory, "__name__", "PEFT")
        raise UserError(f"{section}: {name} rejects these values ({first_line(error)})") from error
    reject_unsupported(config)
    return config


def attach_adapter(adapter: AdapterSpec, backbone: PreTrainedModel) -> nn.Module:
    """Add the layers of the adapter to ``backbone`` in place, trainable in float32; return the `PeftModel`.

    Raises:
        UserError: PEFT rejects the method (missing target modules, for example), it is one of
            `imsm.models.adapters.unsupported`, or it overwrites weights of the backbone, so that
            disabling the adapter would not restore the original model.
    """
    reject_unsupported(adapter.config)
    _check_targets(adapter.config, backbone)
    before = _sample_weights(backbone)
    try:
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers has deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # PEFT warns about targets that are norms or have no bias, which is intended here.
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            warnings.filterwarnings("ignore", "Detected that the base layer has no", UserWarning)
            # The adapter is trained in float32: updates at small learning rates vanish in bfloat16.
            adapted = get_peft_model(backbone, adapter.config, autocast_adapter_dtype=True)
            # PEFT completes the configuration; one that it cannot load again must fail before training.
            with TemporaryDirectory() as folder:
                adapter.config.save_pretrained(folder)
                PeftConfig.from_pretrained(folder)
    except (ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if sharded_layers(backbone):
            raise UserError(
                f"engine=fsdp2: {type(adapter.config).__name__} cannot be added to sharded layers, of which each "
                f"process holds some rows ({first_line(error)}); set engine=zero2 or zero3"
            ) from error
        raise UserError(f"the adapter does not fit the backbone: {error}") from error
    after = _sample_weights(backbone)
    changed = [name for name, values in before.items() if not values.equal(after.get(name, values))]
    if changed:
        raise UserError(
            f"peft: {type(adapter.config).__name__} overwrites weights of the backbone ({changed[0]} and "
            f"{len(changed) - 1} more), so disabling the adapter would not restore the original model; choose "
            "another method or initialization"
        )
    freeze_buffers(adapted)
    return adapted


def _check_targets(config: PeftConfig, backbone: PreTrainedModel) -> None:
    """Raise a UserError if a listed target module does not exist."""
    # PEFT ignores a name without a match as long as another one matches.
    targets = getattr(config, "target_modules", None) or ()
    # A string is a regular expression or a keyword ("all-linear"), which PEFT checks itself.
    if isinstance(targets, str):
        return
    paths = [f".{name}" for name, _ in backbone.named_modules()]
    missing = [t for t in sorted(targets) if not any(path.endswith(f".{t}") for path in paths)]
    if missing:
        linear = {n.rpartition(".")[2] for n, m in backbone.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        raise UserError(
            f"{type(backbone).__name__} has no module {', '.join(missing)} (its linear layers: "
            f"{', '.join(sorted(linear))}); choose others by peft.target_roles, or add them to "
            "backbone.module_names (docs/extending.md)"
        )


def freeze_buffers(adapted: nn.Module) -> None:
    """Freeze constants of PEFT layers that are not adapter weights (``ranknum`` of AdaLoRA).

    PEFT makes them trainable when it casts the adapter of a bfloat16 backbone to float32. They are
    not saved with the adapter.
    """
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.other_param_names:
                constants = getattr(layer, name, None)
                if isinstance(constants, nn.ParameterDict):
                    constants.requires_grad_(False)


def freeze_adapter(adapted: nn.Module) -> None:
    """Freeze the adapter and keep it in eval mode."""
    adapted.requires_grad_(False).eval()
    # train() of the surrounding model would enable the dropout of the adapter again; the backbone has none.
    adapted.train = lambda mode=True: adapted  # type: ignore[method-assign]


def _sample_weights(backbone: PreTrainedModel, *, count: int = 512) -> dict[str, torch.Tensor]:
    """Return about ``count`` values of every weight, by its name without an adapter."""
    samples = {}
    # A sample suffices here, with a name for the message; `check_adapter` compares every bit later.
    for name, value in backbone.state_dict().items():
        weight = local_part(value)
        if not weight.is_meta:
            plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            samples[plain] = weight.reshape(-1)[:: max(1, weight.numel() // count)].clone()
    return samples
