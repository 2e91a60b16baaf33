"""Any tuner of the installed PEFT, by its type and its own arguments.

Nothing is known of it here but what PEFT says: `imsm.models.adapters.unsupported` and `imsm.models.adapters.adapter_check`
find out whether it can be interwoven.
"""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from imsm.models.adapters.base import AdapterSpec
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.utils.errors import UserError
from imsm.utils.instantiate import argument_errors
from imsm.utils.options import closest_match

if TYPE_CHECKING:
    from peft import PeftConfig

_RUN = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
)
"""Fields of a configuration that the run sets."""
_OWN_TARGETS = ("ADAPTION_PROMPT", "LN_TUNING", "TRAINABLE_TOKENS")
"""Types whose targets are no linear layers; PEFT knows their names for many models."""
_HOOKED = {"ADALORA": "peft=adalora"}
"""Types that the training loop must call, and the option that does."""


def peft_tuner(*, target_modules: list[str], peft_type: str, kwargs: dict[str, Any] | None) -> AdapterSpec:
    """The tuner of the given type.

    Args:
        target_modules: names of linear layers, for the types that take such.
        peft_type: a `peft.PeftType`, e.g. "HRA".
        kwargs: fields of PEFT's configuration of the type; None: PEFT's defaults.

    Raises:
        UserError: PEFT has no such type or the type no such argument, a value does not fit, or
            the method is refused.
    """
    config_class, given = _config_class(peft_type), dict(kwargs or {})
    fields = {field.name for field in dataclasses.fields(config_class)}
    if "target_modules" in fields and peft_type.upper() not in _OWN_TARGETS:
        given = {"target_modules": target_modules, **given}
    return AdapterSpec(_build(config_class, given))


def check_arguments(*, peft_type: str, kwargs: dict[str, Any] | None) -> None:
    """What PEFT demands of a type and its arguments; asked before anything is loaded too.

    Raises:
        UserError: see `any_tuner`.
    """
    config_class, given = _config_class(peft_type), dict(kwargs or {})
    reject_unsupported(SimpleNamespace(**{"peft_type": SimpleNamespace(value=peft_type.upper()), **given}))
    errors = argument_errors("peft.kwargs", config_class, given, supplied=_RUN)
    if errors:
        raise UserError("; ".join(errors))
    _build(config_class, given)


def _config_class(type: str) -> type[PeftConfig]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value): found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = type.upper()
    if kind not in classes:
        guess = closest_match(kind, classes)
        hint = f"; did you mean peft.peft_type={guess}?" if guess else ""
        raise UserError(f"peft.peft_type={type}: the installed PEFT has {', '.join(classes)}{hint}")
    if kind in _HOOKED:
        raise UserError(f"peft.peft_type={type}: needs calls of its own in the training loop; choose {_HOOKED[kind]}")
    return classes[kind]


def _build(config_class: type[PeftConfig], arguments: dict[str, Any]) -> PeftConfig:
    try:
        with warnings.catch_warnings():  # of targets that are not given yet
            warnings.simplefilter("ignore")
            config = config_class(task_type="CAUSAL_LM", **arguments)
    except (AssertionError, ImportError, LookupError, TypeError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), error.__class__.__name__)
        raise UserError(f"peft.kwargs: {config_class.__name__} refuses them ({first})") from error
    return config
