"""Prompt tuning (Lester et al., 2021): learned embeddings before the tokens."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count


def prompt_tuning(*, virtual_tokens: Count) -> AdapterSpec:
    """Learned embeddings before every prompt, random at the start.

    Args:
        virtual_tokens: how many.
    """
    from peft import PromptTuningConfig

    return AdapterSpec(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens))
