"""LoRA (Hu et al., 2021): W x + (alpha / rank) B A x."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count, Probability


def lora(*, target_modules: list[str], rank: Count, alpha: Count, dropout: Probability) -> AdapterSpec:
    """LoRA on the given modules; rank 16 and alpha 16 in the paper.

    Args:
        target_modules: names of linear layers.
        rank: of B A.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input.
    """
    from peft import LoraConfig

    return AdapterSpec(
        LoraConfig(
            task_type="CAUSAL_LM", target_modules=target_modules, r=rank, lora_alpha=alpha, lora_dropout=dropout
        )
    )
