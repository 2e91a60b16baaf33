"""Prefix tuning (Li and Liang, 2021): learned keys and values before the tokens, in every layer."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count

LEARNS_KEYS = True
"""What is learned stands in a cache: gradient checkpointing is refused before all else."""


def prefix_tuning(*, virtual_tokens: Count, encoder_width: Count | None) -> AdapterSpec:
    """Learned keys and values before every prompt; gradient checkpointing cannot be used.

    Args:
        virtual_tokens: how many positions.
        encoder_width: of an MLP that makes them while they are trained (the paper's way); None:
            they are trained themselves.
    """
    from peft import PrefixTuningConfig

    return AdapterSpec(
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=virtual_tokens,
            prefix_projection=encoder_width is not None,
            encoder_hidden_size=encoder_width,  # type: ignore[arg-type]
        )
    )
