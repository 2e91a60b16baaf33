"""PEFT methods that cannot be used with IMSM, recognized by their configuration alone.

`imsm.models.siamese.adapter_check` finds other unusable methods on the model itself.
"""

from typing import Any

from imsm.models.adapters.patterns import slow_pattern
from imsm.utils.errors import UserError

_OVERWRITES = (
    "initializes the adapter from the backbone's weights and overwrites them with the remainder: disabling the "
    "adapter would not restore the original model"
)
_TASK_IDS = "routes by a task id per example, which IMSM's batches do not contain"
TYPES = {
    "LILY": (
        "averages its router over all tokens of a batch, so later tokens and other examples change earlier hidden "
        "states"
    ),
    "MULTITASK_PROMPT_TUNING": _TASK_IDS,
    "POLY": _TASK_IDS,
    "SHADOW": (
        "passes a second hidden state through the decoder, which only its own forward pass supports: the decoder "
        "cannot be run separately"
    ),
    "XLORA": "mixes trained LoRA adapters, using an extra forward pass in each pass; none are available here",
}
"""Unsupported PEFT types with the reason."""
_INITIALIZATIONS = {
    "pissa": _OVERWRITES,
    "olora": _OVERWRITES,
    "corda": _OVERWRITES,
    "loftq": _OVERWRITES,
    "lora_ga": "needs gradients on training data before training, and overwrites the backbone's weights",
    "eva": "needs activations on training data before training, which are not collected here",
}
_FIELDS = {
    "kasa_config": (
        "removes the smallest singular directions of the backbone's weights permanently: disabling the adapter "
        "would not restore the original model"
    ),
    "layer_replication": "changes the backbone's depth: the original model is lost",
    "alora_invocation_tokens": (
        "activates at a token of the prompt; before it, the original hidden state would be mixed with itself"
    ),
    "arrow_config": "mixes trained LoRA adapters; none are available here",
    "monteclora_config": "adds its own loss to its layers, which only its own trainer collects",
    "megatron_config": "requires Megatron layers, which no supported backbone has",
    "use_asa": "needs its own calls in the training loop",
}
_BIASES = (
    "trains the backbone's own biases, so disabling the adapter would not restore the original model; peft=bitfit "
    "adds separate trainable biases"
)


def unsupported_reason(config: Any) -> str | None:
    """Return why a PEFT configuration cannot be used, or None.

    The reason starts with the type or the field that causes it.
    """
    # Any attribute may be missing: the argument may be a namespace with only the fields that a user set.
    kind = str(getattr(getattr(config, "peft_type", None), "value", ""))
    if kind in TYPES:
        return f"{kind} {TYPES[kind]}"
    init = str(getattr(config, "init_lora_weights", ""))
    for name, reason in _INITIALIZATIONS.items():
        # PEFT also accepts the number of iterations in the name: pissa_niter_16.
        if init == name or (name == "pissa" and init.startswith("pissa_niter_")):
            return f"init_lora_weights={init} {reason}"
    for name, reason in _FIELDS.items():
        if getattr(config, name, None):
            return f"{name} {reason}"
    if getattr(config, "bias", "none") not in ("none", False, None):
        return f"bias={config.bias} {_BIASES}"
    # PEFT marks each context token by its role; multiples of 4 are labels.
    marks = getattr(config, "cpt_tokens_type_mask", None) or ()
    if kind == "CPT" and any(mark % 4 == 0 for mark in marks):
        return "CPT with labels in its context trains on them too, which requires its own loss"
    return slow_pattern(config)


def reject_unsupported(config: Any) -> None:
    """Raise a UserError if a method is known to give wrong results."""
    reason = unsupported_reason(config)
    if reason is not None:
        raise UserError(f"peft: {reason}; choose another method or initialization")
