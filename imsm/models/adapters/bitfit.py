"""BitFit (Ben Zaken et al., 2022): W x + b + Δb, biases alone are trained.

Most language models have no biases, so there is nothing to train in place: PEFT's BEFT adds a
trainable bias to each of the chosen layers, which is the same function where they have one.
"""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec


def bitfit(*, target_modules: list[str]) -> AdapterSpec:
    """A trainable bias on each of the given modules.

    Args:
        target_modules: names of linear layers.
    """
    from peft import BeftConfig

    return AdapterSpec(BeftConfig(task_type="CAUSAL_LM", target_modules=target_modules))
