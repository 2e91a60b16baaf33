"""What PEFT offers and IMSM refuses by name, with the reason: known from a configuration alone.

What is not known here is found by `imsm.models.adapters.adapter_check` on the model itself.
"""

from __future__ import annotations

from typing import Any

from imsm.utils.errors import UserError

_OVERWRITES = (
    "takes its start out of the backbone's weights and overwrites them with the rest: with the "
    "adapter off the model would not be the original"
)
_TASK_IDS = "routes by a task id per example, which IMSM's batches do not carry"
TYPES = {
    "LILY": (
        "averages its router over every token of a batch, so that later tokens and other rows change earlier memories"
    ),
    "MULTITASK_PROMPT_TUNING": _TASK_IDS,
    "POLY": _TASK_IDS,
    "SHADOW": (
        "sends a second hidden state through the decoder, which its own pass alone can carry: the "
        "body that makes memories cannot be run with it"
    ),
    "XLORA": (
        "mixes LoRA adapters that were trained before, by a pass of its own inside every pass; there are none to mix"
    ),
}
"""PEFT types that cannot be interwoven, and why."""
_INITIALISATIONS = {
    "pissa": _OVERWRITES,
    "olora": _OVERWRITES,
    "corda": _OVERWRITES,
    "loftq": _OVERWRITES,
    "lora_ga": "needs gradients on training data before it starts, and overwrites the weights",
    "eva": "needs activations on training data before it starts, which nothing gathers here",
}
_FIELDS = {
    "kasa_config": (
        "drops the last directions of the backbone's weights for good: with the adapter off the "
        "model would not be the original"
    ),
    "layer_replication": "changes the backbone's depth: the original model is gone",
    "alora_invocation_tokens": (
        "switches itself on at a token of the prompt; the original memory would be mixed with itself before it"
    ),
    "arrow_config": "mixes LoRA adapters that were trained before; there are none to mix",
    "monteclora_config": "adds a loss of its own to its layers, which only its trainer asks for",
    "megatron_config": "is for Megatron's layers, which no backbone here has",
    "use_asa": "needs calls of its own in the training loop",
}
_BIASES = (
    "trains the backbone's own biases, so that with the adapter off the model would not be the "
    "original; peft=bitfit trains biases beside them"
)


def unsupported_reason(config: Any) -> str | None:
    """Why a method cannot be used, in words that follow its name; None if nothing is known.

    Args:
        config: a configuration of PEFT's, or of a method of one's own (never refused here).
    """
    kind = str(getattr(getattr(config, "peft_type", None), "value", ""))
    if kind in TYPES:
        return f"{kind} {TYPES[kind]}"
    start = str(getattr(config, "init_lora_weights", ""))
    for name, reason in _INITIALISATIONS.items():
        if start == name or (name == "pissa" and start.startswith("pissa_niter_")):
            return f"init_lora_weights={start} {reason}"
    for name, reason in _FIELDS.items():
        if getattr(config, name, None):
            return f"{name} {reason}"
    if getattr(config, "bias", "none") not in ("none", False, None):
        return f"bias={config.bias} {_BIASES}"
    marks = getattr(config, "cpt_tokens_type_mask", None) or ()
    if kind == "CPT" and any(mark % 4 == 0 for mark in marks):
        return "CPT with labels in its context learns them too, which only its own loss does"
    return None


def reject_unsupported(config: Any) -> None:
    """Refuse a method that is known to give wrong results.

    Raises:
        UserError: with the reason.
    """
    reason = unsupported_reason(config)
    if reason is not None:
        raise UserError(f"peft: {reason}. Choose another method or initialisation")
