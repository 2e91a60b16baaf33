"""Any method of the installed PEFT by its type: peft=generic peft.peft_type=HRA 'peft.kwargs={r: 8}'.

Whether the method can be interwoven is checked by `imsm.models.adapters.unsupported` and
`imsm.models.siamese.adapter_check`.
"""

from types import SimpleNamespace
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from imsm.models.adapters.base import AdapterSpec, config_argument_errors, instantiate_config
from imsm.models.adapters.unsupported import reject_unsupported
from imsm.utils.errors import UserError
from imsm.utils.instantiate import accepts_target_modules
from imsm.utils.messages import did_you_mean
from imsm.utils.options import closest_match

_DEFAULT_TARGETS = ("ADAPTION_PROMPT", "LN_TUNING", "TRAINABLE_TOKENS")
"""Types whose targets are not linear layers; PEFT has default targets for many models."""
_NEEDS_CALLBACKS = {"ADALORA": "peft=adalora"}
"""Types that need training callbacks, and the option that provides them."""


def peft_tuner(*, target_modules: list[str], peft_type: str, kwargs: dict[str, Any] | None) -> AdapterSpec:
    """Build the method of type ``peft_type``, with ``kwargs`` as fields of its PEFT configuration.

    Raises:
        UserError: PEFT has no such type, the type has no such field, a value is invalid, or the
            method is unsupported.
    """
    config_class, given, kind = _config_class(peft_type), dict(kwargs or {}), peft_type.upper()
    # Before the fields are checked: the reason why a method is unsupported is the more useful error.
    reject_unsupported(SimpleNamespace(**{"peft_type": SimpleNamespace(value=kind), **given}))
    errors = config_argument_errors("peft.kwargs", config_class, given)
    if errors:
        raise UserError("; ".join(errors))
    if accepts_target_modules(config_class) and kind not in _DEFAULT_TARGETS:
        given = {"target_modules": target_modules, **given}
    return AdapterSpec(instantiate_config(config_class, given, section="peft.kwargs"))


def _config_class(peft_type: str) -> type[PeftConfig]:
    # PEFT's own mapping, so that methods of newer versions are available without a change here.
    classes = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = peft_type.upper()
    if kind not in classes:
        match = closest_match(kind, classes)
        hint = did_you_mean(match and f"peft.peft_type={match}")
        raise UserError(f"peft.peft_type={peft_type}: the installed PEFT has {', '.join(classes)}{hint}")
    if kind in _NEEDS_CALLBACKS:
        raise UserError(f"peft.peft_type={peft_type}: needs training callbacks; choose {_NEEDS_CALLBACKS[kind]}")
    return classes[kind]
