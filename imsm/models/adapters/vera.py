"""VeRA (Kopiczko et al., 2024): W x + Λ_b B Λ_d A x, with A and B random and shared by all layers.

The two vectors Λ_b and Λ_d of each layer are trained.
"""

from __future__ import annotations

from imsm.models.adapters.base import AdapterSpec
from imsm.utils.instantiate import Count, Positive, Probability


def vera(
    *, target_modules: list[str], rank: Count, dropout: Probability, initial_scale: Positive, seed: Count
) -> AdapterSpec:
    """VeRA on the given modules.

    Args:
        target_modules: names of linear layers.
        rank: of the shared matrices.
        dropout: on the adapter's input.
        initial_scale: of Λ_d; Λ_b begins at 0.
        seed: of the random matrices, which are saved with the adapter.
    """
    from peft import VeraConfig

    return AdapterSpec(
        VeraConfig(
            task_type="CAUSAL_LM",
            target_modules=target_modules,
            r=rank,
            vera_dropout=dropout,
            d_initial=initial_scale,
            projection_prng_key=seed,
            save_projection=True,
        )
    )
