"""Prompt tuning (Lester et al., 2021): learned embeddings before the tokens."""

from __future__ import annotations

from imsm.adapters.adapter import Adapter
from imsm.builders import Count


def prompt_tuning(*, virtual_tokens: Count) -> Adapter:
    """Learned embeddings before every prompt, random at the start.

    Args:
        virtual_tokens: how many.
    """
    from peft import PromptTuningConfig

    return Adapter(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens))
