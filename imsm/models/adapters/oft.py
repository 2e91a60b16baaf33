"""OFT (Qiu et al., 2023; Qiu et al., 2025): W R x, with R orthogonal and block-diagonal."""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count, Probability


def oft(*, target_modules: list[str], block_size: Count, dropout: Probability) -> AdapterSpec:
    """OFT on the given modules.

    Args:
        target_modules: names of linear layers.
        block_size: of R's blocks; where it does not divide a layer's inputs, PEFT takes the
            nearest size that does.
        dropout: of whole blocks, which are the identity then.
    """
    from peft import OFTConfig

    return AdapterSpec(
        OFTConfig(
            task_type="CAUSAL_LM",
            target_modules=target_modules,
            r=0,
            oft_block_size=block_size,
            module_dropout=dropout,
        )
    )
