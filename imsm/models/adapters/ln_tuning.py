"""LN tuning (Zhao et al., 2024): the scales (and biases) of the norms alone are trained."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec


def ln_tuning(*, target_modules: list[str]) -> AdapterSpec:
    """A trained copy of each of the given norms beside the original one.

    Args:
        target_modules: names of norms.
    """
    from peft import LNTuningConfig

    return AdapterSpec(LNTuningConfig(task_type="CAUSAL_LM", target_modules=target_modules))
