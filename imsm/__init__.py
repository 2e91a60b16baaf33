"""imsm: how much does fine-tuning teach a language model, and how much does it make it forget?

Read in the order of the data flow: ``run`` -> ``config`` -> ``flow`` -> ``data`` -> ``siamese`` ->
``training`` -> ``evaluation`` -> ``report``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imsm.models.siamese.config import SiameseConfig
    from imsm.models.siamese.model import SiameseForCausalLM

__version__ = "0.1.0"
__all__ = ["SiameseConfig", "SiameseForCausalLM", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the model on first use: torch and transformers take seconds."""
    if name not in ("SiameseConfig", "SiameseForCausalLM"):
        raise AttributeError(f"module 'imsm' has no attribute {name!r}")
    from transformers import AutoConfig, AutoModelForCausalLM

    from imsm.models.siamese.config import SiameseConfig
    from imsm.models.siamese.model import SiameseForCausalLM

    AutoConfig.register(SiameseConfig.model_type, SiameseConfig, exist_ok=True)
    AutoModelForCausalLM.register(SiameseConfig, SiameseForCausalLM, exist_ok=True)
    return {"SiameseConfig": SiameseConfig, "SiameseForCausalLM": SiameseForCausalLM}[name]
