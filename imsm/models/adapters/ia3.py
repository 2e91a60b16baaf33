"""(IA)^3 (Liu et al., 2022): learned factors on keys, values and the MLP's inner activations."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec


def ia3(*, target_modules: list[str], feedforward_modules: list[str]) -> AdapterSpec:
    """(IA)^3 on the given modules.

    Args:
        target_modules: names of linear layers.
        feedforward_modules: those of them whose input is scaled, not their output.
    """
    from peft import IA3Config

    return AdapterSpec(
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=target_modules,
            feedforward_modules=[name for name in target_modules if name in feedforward_modules],
        )
    )
